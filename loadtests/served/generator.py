"""The load: closed and open loops of callers, in processes of their own so that watching them costs them nothing."""

import itertools
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, final

import numpy as np

from backsolve import Client
from backsolve.errors import BacksolveError

from .schedule import poisson
from .tally import NOT_SENT, Tally
from .workload import Caller, Workload

READY_SECONDS = 120.0
GRACE_SECONDS = 30.0
_HEAD_START = 0.2
"""Seconds between the word to start and the start: every process has heard it by then."""


@final
@dataclass(frozen=True)
class Plan:
    """One run of callers against one server.

    Attributes:
        workload: what they do.
        url: where, as `backsolve.Client` takes it.
        seconds: no step begins later than this after the start.
        most: no more steps than this, over all callers.
        callers: how many; in an open loop how many steps may be under way at once.
        rate: steps a second that are due, whatever the server does; None: each caller begins a
            step when its last one has ended (a closed loop).
        seed: of the arrivals.
        processes: how many the callers are spread over.
        timeout: seconds that each call of a client may take.
        limit: seconds within which an answer is goodput.
        check_every: each caller checks its first answer and every so many after it.
        warm: steps of each caller before the run, not counted.
    """

    workload: Workload
    url: str
    seconds: float
    most: int = 200_000
    callers: int = 4
    rate: float | None = None
    seed: int = 640_183_927
    processes: int = 1
    timeout: float = 30.0
    limit: float = 1.0
    check_every: int = 4
    warm: int = 1


def run(plan: Plan, begun: Callable[[], None] | None = None) -> Tally:
    """Run a plan and return what became of its steps.

    Every run ends: steps stop beginning after `plan.seconds`, and calls end by `plan.timeout`.

    Args:
        plan: the run.
        begun: called once the callers are warm, just before the first step.

    Raises:
        RuntimeError: a generator process failed; the text says how.
    """
    count = 1 if plan.workload.one_process else min(plan.processes, plan.callers)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pipes: list[Connection] = []
        for number in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_process, args=(plan, number, count, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(_reap, process)
            stack.callback(ours.close)
            pipes.append(ours)
        for pipe in pipes:
            _hear(pipe, READY_SECONDS + plan.timeout)
        if begun is not None:
            begun()
        start = time.monotonic() + _HEAD_START
        for pipe in pipes:
            pipe.send(start)
        # A step is at most a handful of calls, each of which may take the whole timeout.
        patience = plan.seconds + 4 * plan.timeout + GRACE_SECONDS
        tallies: list[Tally] = [_hear(pipe, patience) for pipe in pipes]
    whole = Tally(plan.seconds, plan.limit)
    for tally in tallies:
        whole.add(tally)
    return whole


def _reap(process: Any) -> None:
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _hear(pipe: Connection, patience: float) -> Any:
    if not pipe.poll(patience):
        raise RuntimeError(f"a generator process said nothing for {patience:.0f} s")
    try:
        message = pipe.recv()
    except EOFError:
        raise RuntimeError("a generator process ended without a word: its trace is above") from None
    if isinstance(message, str):
        raise RuntimeError(f"a generator process failed: {message}")
    return message


def _process(plan: Plan, number: int, count: int, pipe: Connection) -> None:
    """One generator process: callers number, number + count, ... of the plan."""
    try:
        with ExitStack() as stack:
            mine = len(range(number, plan.callers, count))
            clients = [stack.enter_context(Client(plan.url, timeout=plan.timeout)) for _ in range(mine)]
            first = sum(len(range(earlier, plan.callers, count)) for earlier in range(number))
            callers = plan.workload.callers(clients, first)
            for caller in callers if plan.warm else []:
                for k in range(plan.warm):
                    caller.prepare(-1 - k)
                    caller.step()
            uploads = sum(_uploads(client) for client in clients)
            moved = [_bytes(client) for client in clients]
            pipe.send(True)
            pipe.poll(None)
            start = pipe.recv()
            tally = _Loop(replace(plan, most=-(-plan.most // count)), callers, start, number, count).run()
            now = [_bytes(client) for client in clients]
            tally.sent = sum(after[0] - before[0] for before, after in zip(moved, now, strict=True))
            tally.received = sum(after[1] - before[1] for before, after in zip(moved, now, strict=True))
            tally.uploads = sum(_uploads(client) for client in clients) - uploads
            pipe.send(tally)
    except BaseException as err:
        pipe.send(f"{type(err).__name__}: {err}")
        raise


def _bytes(client: Client) -> tuple[int, int]:
    """Payload bytes up and down."""
    wire: Any = client.transport
    return wire.sent, wire.received


def _uploads(client: Client) -> int:
    return int(client.stats()["uploads"])


@final
class _Loop:
    """The callers of one process, each on a thread."""

    def __init__(self, plan: Plan, callers: list[Caller], start: float, number: int, count: int) -> None:
        self._plan, self._callers, self._start = plan, callers, start
        self._tally = Tally(plan.seconds, plan.limit)
        self._due: Any = None
        if plan.rate is not None:
            self._due = poisson(plan.rate, plan.seconds, plan.seed, plan.most * count)[number::count]
        self._next: Iterator[int] = itertools.count()  # its next() is atomic
        self._failure: BaseException | None = None

    def run(self) -> Tally:
        body = self._closed if self._plan.rate is None else self._open
        threads = [threading.Thread(target=self._guarded, args=(body, caller)) for caller in self._callers]
        spent = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        self._tally.cpu_seconds = time.process_time() - spent
        return self._tally

    def _guarded(self, body: Callable[[Caller], None], caller: Caller) -> None:
        try:
            body(caller)
        except BaseException as err:  # a thread's exception would only be printed
            self._failure = err
        finally:
            caller.end()

    def _closed(self, caller: Caller) -> None:
        """A step begins when the last one has ended."""
        end = self._start + self._plan.seconds
        time.sleep(max(self._start - time.monotonic(), 0))
        checks = itertools.count()
        while time.monotonic() < end and (k := next(self._next)) < self._plan.most:
            try:
                caller.prepare(k)
            except threading.BrokenBarrierError:  # another caller has finished
                return
            self._step(caller, time.monotonic(), next(checks))

    def _open(self, caller: Caller) -> None:
        """Steps are due at fixed times, and a latency counts from then: a wait for a free caller is part of it."""
        over = self._start + self._plan.seconds + self._plan.timeout
        checks = itertools.count()
        while (k := next(self._next)) < len(self._due):
            due = self._start + float(self._due[k])
            if time.monotonic() > over:
                self._tally.count(NOT_SENT)
                continue
            caller.prepare(k)
            if (early := due - time.monotonic()) > 0:
                time.sleep(early)
                self._tally.lagged(time.monotonic() - due)
            self._step(caller, due, next(checks))

    def _step(self, caller: Caller, due: float, number: int) -> None:
        code: str | None = None
        try:
            caller.step()
        except BacksolveError as err:
            code = err.code.name
        seconds = time.monotonic() - due
        self._tally.record(due - self._start, seconds, code)
        if code is None and number % self._plan.check_every == 0:
            with np.errstate(all="ignore"):
                right = caller.check()
            self._tally.verdict(right, seconds <= self._plan.limit)
