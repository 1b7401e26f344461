"""Linters that come as binaries: fetched once into a cached folder, checked by hash."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with `hadolint` and `docker-compose`; without a network the test fails and says so."""
    command = [ROOT / "deploy/ci/fetch_tools.sh", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"hadolint and docker-compose could not be fetched:\n{done.stderr}"
    return Path(done.stdout.strip()) / "bin"
