"""A call that can be left where it waits: its own thread waits there, or takes it up again at another's word.

A thread that waits for a block costs two switches of threads a call, and the interpreter's lock is fought for at each.
So what a call does is written as a generator which yields the tickets that it waits for. Who has a thread to spare runs
it with `finish`; an event loop takes the ticket, serves others, and goes on when that is settled (`rest/parking.py`).
"""

from collections.abc import Generator
from typing import Any, TypeAlias, TypeVar

from ..context import CallContext, WouldWaitError
from .ticket import Ticket

T = TypeVar("T")

Steps: TypeAlias = Generator[Ticket[Any], None, T]
"""What is yielded must be settled before the next step; closing it takes back what has not begun."""


def finish(steps: Steps[T], context: CallContext) -> T:
    """Go through a call on this thread, and wait where it waits, at most as long as `context` lasts.

    Raises:
        WouldWaitError: it waits, and `context` is `at_once`.
        BaseException: of the call.
    """
    try:
        ticket = next(steps)
        while True:
            try:
                if context.at_once:
                    raise WouldWaitError
                ticket.wait(context)
            except BaseException as error:
                ticket = steps.throw(error)
            else:
                ticket = next(steps)
    except StopIteration as end:
        value: T = end.value
        return value
