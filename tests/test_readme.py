"""Everything that the README shows is run, and what it says of versions and fields is true."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from backsolve import Certificate
from support.servers import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [body for language, body in BLOCKS if language == "sh"]
MAKE = [body for body in SHELL if body.startswith("make ")]
OTHER = [body for body in SHELL if body not in MAKE]


def run(command: list[str], tmp_path: Path) -> str:
    """Run a block in the root, warnings as errors, without the caller's own BACKSOLVE_* variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    environment |= {"PYTHONWARNINGS": "error", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def addressed(block: str, server: ServerProcess) -> str:
    """The block with the addresses of the test's server in place of the default ones."""
    block = block.replace("127.0.0.1:8080", f"127.0.0.1:{server.http_port}")
    block = block.replace("127.0.0.1:50051", f"127.0.0.1:{server.grpc_port}")
    return block.replace(".venv/bin/python", sys.executable)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?", text)]


def test_all_blocks_are_of_a_known_language():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(PYTHON) == 3
    assert len(OTHER) == 3


@pytest.mark.parametrize("block", OTHER, ids=["remote", "json", "file"])
def test_shell_runs(block: str, server: ServerProcess, tmp_path: Path):
    assert run(["bash", "-euo", "pipefail", "-c", addressed(block, server)], tmp_path).strip()


def test_the_first_example_prints_the_right_gradients(tmp_path: Path):
    printed = numbers(run([sys.executable, "-c", PYTHON[0]], tmp_path))
    # By hand: x = (3/2, 2, 3/2), adjoint = A⁻¹ 2x = (5, 7, 5), and -adjoint[row] x[column] on the pattern.
    x, adjoint = [1.5, 2.0, 1.5], [5.0, 7.0, 5.0]
    entries = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert printed == pytest.approx([*x, *(-adjoint[i] * x[j] for i, j in entries), *adjoint], rel=1e-13)


def test_the_grpc_example_prints_the_right_answer(server: ServerProcess, tmp_path: Path):
    printed = run([sys.executable, "-c", addressed(PYTHON[1], server)], tmp_path)
    assert numbers(printed)[:2] == pytest.approx([1 / 11, 7 / 11], rel=1e-7)


def test_the_numpy_example_reuses_one_factor(tmp_path: Path):
    first, second, third = run([sys.executable, "-c", PYTHON[2]], tmp_path).splitlines()
    assert first.startswith("Status.OK ")
    assert second == "(1000, 1000) True"
    residual, hit = third.split()
    assert float(residual) < 1e-9
    assert hit == "True"


@pytest.mark.parametrize("block", MAKE)
def test_make_targets_exist(block: str):
    for line in block.splitlines():
        subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, check=True)


def test_a_target_that_does_not_exist_is_noticed():
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["make", "no-such-target", "--dry-run"], cwd=ROOT, capture_output=True, check=True)


def test_make_targets_named_in_the_text_exist():
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"`make\s+([a-z-]+)", README))
    for target in named:
        subprocess.run(["make", target, "--dry-run"], cwd=ROOT, capture_output=True, check=True)
    assert {"demo", "test", "bench"} <= named


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert targets
    assert not missing


def test_the_certificate_is_described_field_by_field():
    table = README.split("## What a certificate says")[1].split("\n\n")[1]
    described = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(Certificate))


def test_versions_are_those_of_the_pins_and_the_declared_ranges():
    pins = set((ROOT / "constraints.txt").read_text().splitlines())
    declared = [
        requirement
        for part in ("client", "service")
        for requirement in _requirements(tomllib.loads((ROOT / part / "pyproject.toml").read_text())["project"])
    ]
    rows = re.findall(r"^\| (\S+) \| ([\d.]+) \| (\S+) \|$", README, re.MULTILINE)
    assert rows
    for name, version, wide in rows:
        assert f"{name}=={version}" in pins
        assert f"{name}{wide}" in declared


def _requirements(project: dict) -> list[str]:
    return [
        *project["dependencies"],
        *(r for extra in project.get("optional-dependencies", {}).values() for r in extra),
    ]
