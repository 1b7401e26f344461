"""Attributes that are computed when they are first asked for.

`functools.cached_property` does that too, but until Python 3.12 under one lock for all objects of a class:
callers who look at different matrices would wait for each other.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, final, overload

T = TypeVar("T")


@final
class lazy(Generic[T]):  # noqa: N801  (it is written like the decorator that it is)
    """A property that is computed once and kept in the object's dictionary.

    Threads that ask at the same moment may compute it twice; one of the equal values is kept.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self._name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> "lazy[T]": ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object, owner: type) -> "T | lazy[T]":
        """The value; later ones come from the dictionary, past this."""
        if instance is None:
            return self
        value: T = instance.__dict__.setdefault(self._name, self._compute(instance))
        return value
