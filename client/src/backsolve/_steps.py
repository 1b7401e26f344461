"""Work in progress: generators that say what is to be done next, and are given what came of it.

Nothing here does input or output, or waits. Whoever drives such a generator decides how its steps are done, so that
the same generator serves callers that block and callers that await.
"""

from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar, final

from .errors import BacksolveError

S = TypeVar("S")
T = TypeVar("T")


@final
class Progress(Generic[S, T]):
    """Where such a generator stands: the step to do next, or, when `step` is None, its result."""

    step: S | None
    result: T

    def __init__(self, steps: Generator[S, Any, T]) -> None:
        self._steps = steps
        self.give(None)

    def give(self, reply: object) -> None:
        """The step is done; this is what came of it."""
        try:
            self.step = self._steps.send(reply)
        except StopIteration as end:
            self.step, self.result = None, end.value

    def fail(self, error: BacksolveError) -> None:
        """The step has failed.

        Raises:
            BacksolveError: so has the whole.
        """
        try:
            self.step = self._steps.throw(error)
        except StopIteration as end:
            self.step, self.result = None, end.value
        finally:
            # An exception that is also a local of a frame in its own traceback keeps all of them, and the
            # caller's tensors, alive.
            del error


def drive(steps: Generator[S, Any, T], do: Callable[[S], object]) -> T:
    """Do one step after the other until there is a result.

    Raises:
        BacksolveError: a step has failed, and that was not made good.
    """
    try:
        progress = Progress(steps)
        while (step := progress.step) is not None:
            try:
                reply = do(step)
            except BacksolveError as error:
                progress.fail(error)
            else:
                progress.give(reply)
    finally:
        steps.close()
    return progress.result


Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Does some work, here or elsewhere, and gives back what it returns."""


async def at_once(work: Callable[[], T]) -> T:
    """Do it here and now."""
    return work()


async def drive_async(steps: Generator[S, Any, T], do: Callable[[S], Awaitable[object]], aside: Aside = at_once) -> T:
    """The same where each step is awaited; the waiting task may be cancelled.

    Args:
        steps: what is driven.
        do: does one step.
        aside: runs what lies between the steps; by default it is done here.

    Raises:
        BacksolveError: a step has failed, and that was not made good.
    """
    try:
        progress: Progress[S, T] = await aside(partial(Progress, steps))
        while (step := progress.step) is not None:
            try:
                reply = await do(step)
            except BacksolveError as error:
                await aside(partial(progress.fail, error))
            else:
                await aside(partial(progress.give, reply))
    finally:
        # Cancelled while it runs aside it cannot be closed, and is let go when that comes to its end.
        with suppress(ValueError):
            steps.close()
    return progress.result
