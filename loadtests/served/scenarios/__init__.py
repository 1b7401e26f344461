"""The kinds of traffic that a server is measured under, by name."""

from collections.abc import Mapping

from .base import Bench, Scenario
from .matrices import Cold, Fixed, Ranks, Steps, Zipf
from .trouble import Huge, Overload, Restart, Slow, Soak

SCENARIOS: Mapping[str, Scenario] = {
    each.name: each
    for each in (Fixed(), Steps(), Ranks(), Zipf(), Cold(), Overload(), Restart(), Slow(), Huge(), Soak())
}
"""Every scenario, in the order in which all of them run."""

__all__ = ["SCENARIOS", "Bench", "Scenario"]
