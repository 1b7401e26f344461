"""The service under a profiler: `python -m loadtests.limits.profiled FILE` is `backsolve-service`.

SIGUSR1 marks the beginning; what was done from there to the end of the service is written to FILE. Every thread has a
profiler of its own (cProfile, by the processor time of its thread, so that waiting costs nothing), so what the event
loop does and what the workers do is all in it. A profiler makes small functions look dearer than they are: look at
shares, and measure without it.
"""

import cProfile
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, final

from backsolve_service import main as service


@final
class Profiles:
    """The profiles of all threads that begin from now on."""

    def __init__(self) -> None:
        self._kept: list[cProfile.Profile] = []
        self._before: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        threading.setprofile(self._begin)

    def _begin(self, frame: FrameType, event: str, arg: Any) -> None:
        """The first event of a new thread, on that thread: its profiler takes over from here."""
        profile = cProfile.Profile(time.thread_time)
        self._kept.append(profile)
        profile.enable()

    def mark(self) -> None:
        """Leave out what came before."""
        self._before = self._sums()

    def write(self, path: Path) -> None:
        """Calls and seconds of every function since the mark, all threads together."""
        calls, seconds = self._sums()
        calls.subtract(self._before[0])
        seconds.subtract(self._before[1])
        rows = [[name, calls[name], seconds[name]] for name in calls if calls[name] > 0]
        path.write_text(json.dumps(rows))

    def _sums(self) -> tuple[Counter[str], Counter[str]]:
        calls: Counter[str] = Counter()
        seconds: Counter[str] = Counter()
        for profile in tuple(self._kept):
            for entry in profile.getstats():
                name = _name(entry.code)
                calls[name] += entry.callcount
                seconds[name] += entry.inlinetime  # type: ignore[assignment]  # Counter is typed for integers alone
        return calls, seconds


def _name(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    return f"{code.co_name} ({'/'.join(Path(code.co_filename).parts[-2:])}:{code.co_firstlineno})"


def summary(path: Path, answered: int, most: int = 25) -> str:
    """Functions by their own processor time, a line each; `answered` calls were made meanwhile."""
    rows: list[tuple[str, int, float]] = json.loads(path.read_text())
    whole = sum(seconds for _, _, seconds in rows) or 1.0
    lines = [f"{'share':>6}{'times a call':>14}{'us a call':>11}  function"]
    for name, calls, seconds in sorted(rows, key=lambda row: -row[2])[:most]:
        lines.append(
            f"{100 * seconds / whole:>5.1f}%{calls / answered:>14.1f}{1e6 * seconds / answered:>11.1f}  {name}"
        )
    lines.append(f"{'':>6}{'':>14}{1e6 * whole / answered:>11.1f}  all of it, profiler included")
    return "\n".join(lines)


def main() -> None:
    """Serve."""
    path = Path(sys.argv[1])
    profiles = Profiles()
    signal.signal(signal.SIGUSR1, lambda *_: profiles.mark())
    end = os._exit

    def written(code: int) -> None:
        profiles.write(path)
        end(code)

    os._exit = written  # type: ignore[assignment]  # the service ends by this, whatever its threads still do
    service.main([])


if __name__ == "__main__":
    main()
