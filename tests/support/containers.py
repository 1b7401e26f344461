"""The container engine of the tests, and `docker compose` on it."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 180.0

MARKS = [
    pytest.mark.containers,
    pytest.mark.timeout(600),
    pytest.mark.skipif("CONTAINER_TESTS" not in os.environ, reason="needs a container engine: make test-containers"),
]


def run(*command: str, check: bool = True) -> str:
    """Standard output of a command; a failure shows what it said."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Stack:
    """What some compose files of `deploy/` describe."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = [part for file in files for part in ("-f", f"deploy/{file}")]

    def compose(self, *arguments: str) -> str:
        return run(os.environ["DOCKER_COMPOSE"], *self._files, *arguments)

    def up(self, *services: str) -> None:
        """Bring services up, and wait until the solver is healthy."""
        self.eventually(lambda: Path(os.environ["DOCKER_HOST"].removeprefix("unix://")).exists(), "the engine answers")
        self.compose("up", "--detach", *services)
        self.eventually(self.healthy, "the solver is healthy")

    def down(self) -> None:
        """End everything; nothing may be left."""
        self.compose("down", "--volumes", "--timeout", "30")
        assert run("podman", "ps", "--all", "--quiet") == ""
        assert run("podman", "volume", "ls", "--quiet") == ""
        assert "backsolve" not in run("podman", "network", "ls")

    def eventually(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition` holds; the limit is only for a test that would never end."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > end:
                pytest.fail(f"never happened: {what}\n{self.compose('logs', '--tail', '40')}")
            time.sleep(0.2)

    def container(self) -> str:
        return self.compose("ps", "--all", "--quiet", "solver").strip()

    def inspect(self, template: str) -> str:
        return run("podman", "inspect", self.container(), "--format", template).strip()

    def healthy(self) -> bool:
        """Run the image's health check once: without systemd nothing else does so on a timer here."""
        run("podman", "healthcheck", "run", self.container(), check=False)
        return self.inspect("{{.State.Health.Status}}") == "healthy"
