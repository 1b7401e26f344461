"""A figure beside the bound that it is meant to keep."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Target:
    """A figure and its bound."""

    name: str
    value: float
    bound: float
    at_most: bool

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        return f"{self.name:58}{self.value:9.3f}  {sign} {self.bound:<6g} {'met' if self.met else 'MISSED'}"
