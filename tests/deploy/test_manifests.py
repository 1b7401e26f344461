"""The Dockerfile and the compose files: valid, hardened, and in step with the service they start."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from backsolve_service.settings import VARIABLES, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = "deploy/compose.yaml"
OVERLAYS = [(COMPOSE,), (COMPOSE, "deploy/compose.gpu.yaml"), (COMPOSE, "deploy/compose.same-host.yaml")]

each_stack = pytest.mark.parametrize("files", OVERLAYS, ids=["cpu", "gpu", "same-host"])


def compose_config(tools: Path, *files: str, **variables: str) -> dict[str, Any]:
    """What `docker compose` makes of the files."""
    command = [tools / "docker-compose", *(word for name in files for word in ("-f", name)), "config", "--format=json"]
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_IMAGE")}
    done = subprocess.run(command, cwd=ROOT, env=clean | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def instruction(name: str) -> list[str]:
    """The arguments of every `name` instruction of the Dockerfile, continuation lines joined."""
    joined = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return re.findall(rf"^{name} (.*)$", joined, re.MULTILINE)


def seconds(duration: str) -> float:
    """A duration as compose writes it, such as "1m30s"."""
    scale = {"h": 3600, "m": 60, "s": 1}
    return sum(float(number) * scale[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration))


def test_hadolint_has_nothing_to_say(tools: Path) -> None:
    done = subprocess.run([tools / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_can_fail(tools: Path) -> None:
    bad = b"FROM debian\nRUN cd /x\n"
    done = subprocess.run([tools / "hadolint", "-"], input=bad, capture_output=True, check=False)
    assert done.returncode == 1


def test_the_image_runs_the_service_without_a_shell_as_nobody() -> None:
    scripts = tomllib.loads((ROOT / "service/pyproject.toml").read_text())["project"]["scripts"]
    (entrypoint,) = map(json.loads, instruction("ENTRYPOINT"))
    (probe,) = (json.loads(text.partition("CMD ")[2]) for text in instruction("HEALTHCHECK"))
    assert entrypoint == ["backsolve-service"]
    assert {*entrypoint, *probe} == scripts.keys()
    assert instruction("USER") == ["10001:10001"]
    assert instruction("STOPSIGNAL") == ["SIGTERM"]


def test_one_dockerfile_serves_every_builder() -> None:
    assert not any("<<" in text for text in instruction("RUN"))
    assert not any("--link" in text for text in instruction("COPY"))
    stages = [text.partition(" AS ")[2] for text in instruction("FROM")]
    # A builder that builds every stage up to its target must not meet CUDA on its way to the CPU image.
    assert stages.index("cpu") < stages.index("build-cuda")
    assert instruction("FROM")[-1] == "cpu AS default"


def test_the_image_sets_only_variables_that_exist() -> None:
    names = set(re.findall(r"\b(BACKSOLVE_\w+)=", DOCKERFILE))
    assert names == {"BACKSOLVE_HOST", "BACKSOLVE_HTTP_PORT", "BACKSOLVE_GRPC_PORT", "BACKSOLVE_DEVICE"}
    assert names <= VARIABLES.keys()
    defaults = Settings.model_fields
    for name in ("http_port", "grpc_port"):
        assert f"BACKSOLVE_{name.upper()}={defaults[name].default}" in DOCKERFILE
    assert instruction("EXPOSE") == [f"{defaults['http_port'].default} {defaults['grpc_port'].default}"]


def test_everything_the_image_copies_reaches_the_builder() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {text.split()[0] for text in instruction("COPY") if not text.startswith("--from")}
    assert kept == copied
    assert all((ROOT / name).exists() for name in copied)


@each_stack
def test_every_container_is_confined(tools: Path, files: tuple[str, ...]) -> None:
    services = compose_config(tools, *files)["services"]
    assert services.keys() == {"solver", "prometheus", "grafana"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
        assert ":" in service["image"]
        assert not service["image"].endswith(":latest")


@each_stack
def test_the_solver_is_set_up_as_the_service_expects(tools: Path, files: tuple[str, ...]) -> None:
    solver = compose_config(tools, *files)["services"]["solver"]
    # A name that is no setting is a KeyError.
    Settings.model_validate({VARIABLES[name]: value for name, value in solver["environment"].items() if value})
    assert {port["target"] for port in solver["ports"]} == {
        Settings.model_fields[name].default for name in ("http_port", "grpc_port")
    }
    # One word: some engines split the arguments of a health check at spaces.
    assert solver["healthcheck"]["test"] == ["CMD", "backsolve-healthcheck"]
    assert seconds(solver["stop_grace_period"]) > Settings.model_fields["drain_seconds"].default


@each_stack
def test_mounted_files_exist_and_are_read_only(tools: Path, files: tuple[str, ...]) -> None:
    config = compose_config(tools, *files)
    for service in config["services"].values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists()
                assert volume["read_only"] is True
            else:
                assert volume["source"] in config["volumes"]


def test_a_machine_may_bring_its_own_images(tools: Path) -> None:
    own = {"SOLVER_IMAGE": "a:1", "PROMETHEUS_IMAGE": "b:1", "GRAFANA_IMAGE": "c:1"}
    services = compose_config(tools, COMPOSE, **own)["services"]
    assert {service["image"] for service in services.values()} == set(own.values())


def test_the_gpu_overlay_reserves_one_gpu_and_builds_for_it(tools: Path) -> None:
    solver = compose_config(tools, *OVERLAYS[1])["services"]["solver"]
    (device,) = solver["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert solver["build"]["target"] == "cuda"
    assert solver["environment"]["BACKSOLVE_DEVICE"] == "cuda"
    assert solver["image"] != compose_config(tools, COMPOSE)["services"]["solver"]["image"]


def test_the_same_host_overlay_has_a_place_for_the_sockets_that_the_solver_may_write_to(tools: Path) -> None:
    config = compose_config(tools, *OVERLAYS[2])
    solver = config["services"]["solver"]
    (mount,) = solver["volumes"]
    paths = [Path(path) for name, path in solver["environment"].items() if name.startswith("BACKSOLVE_UNIX_")]
    assert len(paths) == 3
    assert {str(path.parent) for path in paths} == {mount["target"]}
    (user,) = instruction("USER")
    uid, _, gid = user.partition(":")
    options = config["volumes"][mount["source"]]["driver_opts"]["o"].split(",")
    assert {f"uid={uid}", f"gid={gid}", "mode=0750"} <= {*options}


def test_scripts_pass_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None and "CONTAINER_TESTS" not in os.environ:
        pytest.skip("shellcheck is not installed")
    assert shellcheck is not None
    scripts = sorted((ROOT / "deploy/ci").glob("*.sh"))
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(scripts) == 4
