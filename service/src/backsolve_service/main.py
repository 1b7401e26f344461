"""`backsolve-service`: settings, logs, signals, exit codes; the work is done by `lifecycle`.

Exit codes: 0 after a signal once every running call has been answered, 1 if the service cannot
start or had to abandon calls, 2 if a setting is wrong, 128 + signal when asked to go at once.
"""

import argparse
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from queue import Empty, SimpleQueue
from types import FrameType
from typing import final

from . import logs
from .machine import keep_buffers
from .settings import ConfigurationError, Settings, describe, load

_log = logging.getLogger("backsolve_service.main")  # not __name__, which is "__main__" under python -m

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2


_SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter from another one that wants it.

With the default, 5 ms, the event loop waits so long each time it wakes while others compute: under load
health checks then take seconds.
"""

_LOOK_SECONDS = 1.0
"""How long a signal that came to another thread may wait to be seen."""


@final
class StopSignals:
    """SIGTERM and SIGINT: the first asks for a drain once there is something to drain, the next one ends it.

    A process that is the first of a container ignores signals without a handler, so this is
    installed before the slow part of starting.
    """

    def __init__(self) -> None:
        # The one queue whose `put` a signal handler may call while its own thread is in `get`.
        self._arrived: SimpleQueue[int] = SimpleQueue()
        self._armed = False

    def install(self) -> None:
        """Take the signals over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def arm(self) -> None:
        """From now on calls may be accepted, so that the next signal asks for a drain."""
        self._armed = True

    def wait(self) -> str:
        """Wait for the signal that asks for a drain; returns its name.

        The system may hand a signal to another thread, which does not wake this one, whose handlers they are: it looks
        for itself.
        """
        while True:
            with suppress(Empty):
                return signal.Signals(self._arrived.get(timeout=_LOOK_SECONDS)).name

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._armed:
            # Nothing has been accepted, or it is the second signal: nothing is worth waiting for.
            os._exit(128 + number)
        self._armed = False
        self._arrived.put(number)


def main(argv: Sequence[str] | None = None) -> None:
    """Console script."""
    _parse(argv)
    try:
        settings = load()
    except ConfigurationError as err:
        for line in err.lines:
            print(f"backsolve-service: {line}", file=sys.stderr)
        sys.exit(EXIT_CONFIGURATION)
    logs.configure(settings.log_level, settings.instance)
    sys.setswitchinterval(_SWITCH_SECONDS)
    keep_buffers()
    signals = StopSignals()
    signals.install()
    code = _serve(settings, signals)
    logging.shutdown()
    sys.stdout.flush()
    # Interpreter shutdown would wait for a factorization that nobody waits for any more.
    os._exit(code)


def _parse(argv: Sequence[str] | None) -> None:
    parser = argparse.ArgumentParser(
        prog="backsolve-service",
        description="Serve differentiable linear solves over REST and gRPC, set up by environment variables.",
        epilog=f"environment variables, with defaults in brackets:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"backsolve-service {version('backsolve-service')}")
    parser.parse_args(argv)


def _serve(settings: Settings, signals: StopSignals) -> int:
    """Start, serve until a signal, drain; returns the exit code."""
    # gRPC's core would write lines of its own kind among ours, one for every failed TLS handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from .lifecycle import Service, StartError  # noqa: PLC0415  (slow; signals and wrong settings come before it)

    try:
        service = Service(settings)
        signals.arm()
        service.start()
        # What the imports left, a million objects, lives as long as the process: the collector need not look there.
        gc.collect()
        gc.freeze()
        gc.collect()  # so that the next full collection is due by what has come since, not by what is frozen
    except StartError as err:
        _log.error("%s", err)
        return EXIT_FAILED
    except Exception:
        _log.exception("the service could not start")
        return EXIT_FAILED
    announcement = {
        "level": "info",
        "message": "serving",
        "instance": settings.instance,
        "pid": os.getpid(),
    } | service.addresses()
    print(json.dumps(announcement), flush=True)
    name = signals.wait()
    _log.info("draining", extra={"signal": name, "drain_seconds": settings.drain_seconds})
    abandoned = service.stop()
    if abandoned:
        _log.error("stopped with calls unanswered: raise BACKSOLVE_DRAIN_SECONDS", extra={"calls": abandoned})
        return EXIT_FAILED
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    main()
