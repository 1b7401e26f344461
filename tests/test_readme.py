"""Everything that the README shows is run, and what it says of versions and fields is true."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from backsolve import Certificate, Client
from support.servers import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [body for language, body in BLOCKS if language == "sh"]
MAKE = [body for body in SHELL if body.startswith("make ")]
OTHER = [body for body in SHELL if body not in MAKE]

# A make that is running these tests would hand its own arguments on to the ones they start, and no reader has the flags
# that spare the tests of JAX the work of its compiler.
OF_TESTS = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "ARGS", "REMOTE", "XLA_FLAGS"}


def surroundings(**more: str) -> dict[str, str]:
    """The environment without the caller's own BACKSOLVE_* variables; warnings are errors."""
    own = {name: at for name, at in os.environ.items() if not name.startswith("BACKSOLVE_") and name not in OF_TESTS}
    return own | {"PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"} | more


def run(command: list[str], scratch: Path, folder: Path = ROOT, **more: str) -> str:
    """Run a command to its end, with a place for its temporary files; gives what it printed."""
    environment = surroundings(TMPDIR=str(scratch), **more)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def make(line: str, *more: str) -> list[str]:
    """A line of the README as a command, with a set-up that is taken as done."""
    program, *arguments = line.split()
    assert program == "make"
    return ["make", "--assume-old=.venv/.ready", *arguments, *more]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as `make` sees it, with an `out/` of its own and the running interpreter's environment."""
    folder = tmp_path_factory.mktemp("checkout")
    for entry in ROOT.iterdir():
        if entry.name not in {".git", ".venv", "out"}:
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def addressed(block: str, server: ServerProcess) -> str:
    """The block with the addresses of the test's server in place of the default ones."""
    block = block.replace("127.0.0.1:8080", f"127.0.0.1:{server.http_port}")
    block = block.replace("127.0.0.1:50051", f"127.0.0.1:{server.grpc_port}")
    block = block.replace(":/run/backsolve/", f":{server.folder}/")
    return block.replace(".venv/bin/python", sys.executable)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?", text)]


def test_all_blocks_are_of_a_known_language():
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert len(PYTHON) == 11
    assert len(OTHER) == 5


@pytest.mark.parametrize("block", OTHER, ids=["remote", "near", "json", "structured", "file"])
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


def test_the_example_with_scipys_names_solves(tmp_path: Path):
    direct, iterated = run([sys.executable, "-c", PYTHON[3]], tmp_path).splitlines()
    assert max(map(float, direct.split())) < 1e-12
    info, residual = iterated.split()
    assert info == "0"
    assert float(residual) <= 1e-8


def test_the_example_of_an_update_factorizes_nothing_anew(tmp_path: Path):
    solved, gradients = run([sys.executable, "-c", PYTHON[4]], tmp_path).splitlines()
    assert solved == "update(banded) True"
    assert gradients.endswith(" (1000, 3)")


def test_the_awaited_example_gives_the_last_answer(tmp_path: Path):
    printed = run([sys.executable, "-c", PYTHON[5]], tmp_path)
    assert numbers(printed) == pytest.approx([99 / 2, 99 / 4, 99 / 8], rel=1e-12)
    assert printed.split()[-1] in ("True", "False")


def test_the_least_squares_example_tells_the_rank_and_solves_the_laplacian(tmp_path: Path):
    first, second, third = run([sys.executable, "-c", PYTHON[6]], tmp_path).splitlines()
    assert first.startswith("lstsq_qr ")
    assert first.endswith("rank 30 of 30 columns")
    assert second == "(200, 30) (200,)"
    # By hand: x = (5, -1, -4) / 6 sums to zero, and its differences are 1 and 1/2.
    assert numbers(third) == pytest.approx([5 / 6, -1 / 6, -4 / 6], rel=1e-7)


def test_the_storage_example_gives_the_gradient_of_what_is_stored(tmp_path: Path):
    printed = numbers(run([sys.executable, "-c", PYTHON[7]], tmp_path))
    A = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]])
    x = np.linalg.solve(A, [1.0, 2.0, 3.0])
    general = np.where(A, -np.outer(x, x), 0.0)  # the cotangent is b, and so the adjoint x
    lower = np.tril(general) + np.tril(general.T, -1)
    assert printed == pytest.approx([*lower.reshape(-1), *general.reshape(-1)], rel=1e-6)


def test_the_example_of_second_derivatives_agrees_with_itself(tmp_path: Path):
    # PyTorch's forward mode calls what PyTorch itself has deprecated.
    own = "error,ignore:`torch.jit.script` is deprecated:DeprecationWarning"
    command = [sys.executable, "-c", PYTHON[10]]
    same, *report = run(command, tmp_path, PYTHONWARNINGS=own).splitlines()
    assert same == "True"
    assert report


def test_the_jax_example_solves_under_jit_and_says_what_failed(tmp_path: Path):
    solved, failed = run([sys.executable, "-c", PYTHON[8]], tmp_path).splitlines()
    assert numbers(solved)[1] == 298
    assert failed == "Status.SINGULAR_NUMERIC True"


def test_the_tensorflow_example_prints_the_right_gradient(tmp_path: Path):
    printed = numbers(run([sys.executable, "-c", PYTHON[9]], tmp_path))
    # As in the first example, in single precision.
    x, adjoint = [1.5, 2.0, 1.5], [5.0, 7.0, 5.0]
    entries = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
    assert printed == pytest.approx([8.5, *(-adjoint[i] * x[j] for i, j in entries)], rel=1e-5)


def test_make_demo_learns_and_draws(checkout: Path, tmp_path: Path):
    assert "make demo" in MAKE[0].splitlines()
    printed = run(make("make demo", "ARGS=--steps 6"), tmp_path, checkout)
    losses = json.loads((checkout / "out" / "losses.json").read_text())
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert (checkout / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert re.search(r"solved by +this process", printed)


@pytest.mark.parametrize(("remote", "url"), [("1", "http://127.0.0.1:"), ("grpc", "grpc://127.0.0.1:")])
def test_make_demo_on_a_server_loses_the_same(remote: str, url: str, checkout: Path, tmp_path: Path):
    assert re.search(r"`make\s+demo\s+REMOTE=1`", README)
    if not (checkout / "out" / "losses.json").exists():
        run(make("make demo", "ARGS=--steps 6 --no-plot"), tmp_path, checkout)
    printed = run(make("make demo", f"REMOTE={remote}", "ARGS=--steps 6 --no-plot"), tmp_path, checkout)
    assert f"solved by                 {url}" in printed
    assert "losses, embedded run      the same" in printed
    assert not list((checkout / "out").glob("demo-*.png"))


def test_make_serve_announces_solves_and_ends(checkout: Path):
    assert "make serve\n" in MAKE
    environment = surroundings(BACKSOLVE_HTTP_PORT="0", BACKSOLVE_GRPC_PORT="0")
    with subprocess.Popen(
        make("make serve"), cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        announced = json.loads(process.stdout.readline())
        try:
            host = announced["host"]
            for url in (f"http://{host}:{announced['http_port']}", f"grpc://{host}:{announced['grpc_port']}"):
                with Client(url) as client:
                    np.testing.assert_allclose(client.solve(np.diag([2.0, 4.0]), np.ones(2)).x, [0.5, 0.25])
        finally:
            os.kill(announced["pid"], signal.SIGTERM)
        rest, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest == ""
    assert [json.loads(line)["message"] for line in log.splitlines()][-1] == "stopped"


@pytest.mark.parametrize("line", [line for block in MAKE for line in block.splitlines()])
def test_make_lines_are_understood(line: str, checkout: Path, tmp_path: Path):
    """`make test` would run these tests again, so what it would do is only listed."""
    listed = run([*line.split(), "--dry-run"], tmp_path, checkout)
    assert {"make demo": "heat_inverse.py", "make serve": "backsolve-service", "make test": "run_tests.py"}[
        line
    ] in listed


def test_a_target_that_does_not_exist_is_noticed():
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(["make", "no-such-target", "--dry-run"], cwd=ROOT, capture_output=True, check=True)


def test_make_targets_named_in_the_text_exist(checkout: Path, tmp_path: Path):
    named = set(re.findall(r"`make\s+([a-z-]+)", README)) - {"test"}  # above
    for target in named:
        run(["make", target, "--dry-run"], tmp_path, checkout)
    assert {"demo", "bench", "test-containers", "test-gpu"} <= named


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
