"""The arrows of ARCHITECTURE.md hold, and the check that says so can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("client/src", "service/src")

FORBIDDEN = {
    "the engine is pure numerics": ("service/src/backsolve_service/engine/base.py", "import grpc"),
    "the client never imports the service": ("client/src/backsolve/matrix.py", "import backsolve_service.context"),
    "nothing imports a framework adapter": ("client/src/backsolve/client.py", "import backsolve.torch"),
    "each layer of the client imports only those below it": (
        "client/src/backsolve/pattern.py",
        "import backsolve.fingerprint",
    ),
    "each layer of the service imports only those below it": (
        "service/src/backsolve_service/cache/__init__.py",
        "import backsolve_service.dataplane",
    ),
}


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of `tree` on the sources of `tree`."""
    paths = [str(tree / source) for source in SOURCES]
    # lint-imports reads the packages that Python finds first, and the installed ones are those of ROOT.
    code = f"import sys; sys.path[:0] = {paths!r}; from importlinter.cli import lint_imports_command as c; c()"
    command = [sys.executable, "-c", code, "--no-cache", "--no-logo", "--config", str(tree / "pyproject.toml")]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources and the contracts, to be spoiled."""
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_follow_the_arrows():
    result = check(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_contract_is_tried():
    result = check(ROOT)
    assert f"Contracts: {len(FORBIDDEN)} kept, 0 broken" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_a_forbidden_import_is_found(contract: str, copy: Path):
    file, line = FORBIDDEN[contract]
    with (copy / file).open("a") as module:
        module.write(f"\n{line}\n")
    result = check(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in result.stdout, result.stdout
