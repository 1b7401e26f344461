"""After `os.fork`, locks and sockets of the parent are useless to the child: objects renew themselves here."""

import os
import weakref
from collections.abc import Callable
from typing import Any

_renewals: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()
_preparations: "weakref.WeakKeyDictionary[Any, Callable[[Any], None]]" = weakref.WeakKeyDictionary()


def renew_after_fork(owner: Any, renew: Callable[[Any], None]) -> None:
    """In every forked child, call `renew(owner)` while `owner` is alive."""
    _renewals[owner] = renew


def before_fork(owner: Any, prepare: Callable[[Any], None]) -> None:
    """In the parent, call `prepare(owner)` before every fork, while `owner` is alive."""
    _preparations[owner] = prepare


def _renew_all() -> None:
    for owner, renew in list(_renewals.items()):
        renew(owner)


def _prepare_all() -> None:
    for owner, prepare in list(_preparations.items()):
        prepare(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_prepare_all, after_in_child=_renew_all)
