"""What nothing needs any more on a device, kept for who may use it again, and given up where room is short.

It is one thing a device, and counts against no budget: at most what the last factor held that was
dropped. An allocation that fails lets go of it, and can be tried again.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_lock = threading.RLock()
_kept: dict[str, object] = {}


def keep(device: str, thing: object) -> None:
    """Keep `thing` until it is taken or given up; what was kept before goes."""
    with _lock:
        before = _kept.get(device)
        _kept[device] = thing
    del before  # destroyed without the lock


def take(device: str, kind: type[T], fits: Callable[[T], bool]) -> T | None:
    """What is kept, if it is of this kind and fits; it is the caller's from then on."""
    with _lock:
        thing = _kept.get(device)
        if isinstance(thing, kind) and fits(thing):
            del _kept[device]
            return thing
        return None


def give_up(device: str) -> bool:
    """Let go of what is kept; whether there was anything."""
    with _lock:
        thing = _kept.pop(device, None)
    return thing is not None
