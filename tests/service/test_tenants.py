"""Tokens stand for tenants, who share a server and nothing of what it holds."""

from pathlib import Path

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import UnauthenticatedError
from backsolve_service.callers import Callers, read_tenants
from backsolve_service.context import PUBLIC_TENANT
from backsolve_service.settings import ConfigurationError, load
from support.servers import ServerProcess
from support.systems import convection

FILE = """
# who may call
red   r3d-Owl.4
blue  blu3-Elk.7
blue  blu3-Elk.8
"""


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    path = tmp_path / "tenants"
    path.write_text(FILE)
    return path


def test_a_file_of_tenants_is_read(tenants: Path) -> None:
    assert read_tenants(tenants) == {"r3d-Owl.4": "red", "blu3-Elk.7": "blue", "blu3-Elk.8": "blue"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("red", "name token"),
        ("red a b", "name token"),
        ("r/d s3cr3t", "letters, digits"),
        ("r" * 65 + " s3cr3t", "at most 64"),
        ("red s3cr3tü", "ASCII"),
        ("red s3cr3t\nblue s3cr3t", "one tenant"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused_by_its_number_and_without_its_token(
    tmp_path: Path, line: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tenants"
    path.write_text("red other\n" + line)
    with pytest.raises(ValueError, match=words) as refusal:
        read_tenants(path)
    assert "line 2" in str(refusal.value) or "line 3" in str(refusal.value)
    assert "s3cr3t" not in str(refusal.value)
    monkeypatch.setenv("BACKSOLVE_TENANTS", str(path))
    with pytest.raises(ConfigurationError, match="BACKSOLVE_TENANTS") as told:
        load()
    assert "s3cr3t" not in str(told.value)


def test_a_token_of_both_settings_is_refused(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKSOLVE_TENANTS", str(tenants))
    monkeypatch.setenv("BACKSOLVE_TOKEN", "r3d-Owl.4")
    with pytest.raises(ConfigurationError, match="one tenant"):
        load()


def test_tenants_are_credentials_enough(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKSOLVE_HOST", "0.0.0.0")
    with pytest.raises(ConfigurationError, match="BACKSOLVE_TENANTS"):
        load()
    monkeypatch.setenv("BACKSOLVE_TENANTS", str(tenants))
    assert load().host == "0.0.0.0"
    tenants.write_text("# nobody yet\n")
    with pytest.raises(ConfigurationError, match="BACKSOLVE_TENANTS"):
        load()


def test_a_token_finds_its_tenant_and_no_other_lets_in() -> None:
    callers = Callers("pu8lic", {"r3d": "red"})
    assert callers.tenant("pu8lic", "") == PUBLIC_TENANT
    assert callers.tenant("r3d", "") == "red"
    for wrong in ("", None, "r3", "r3d ", "pu8licx", "rêd"):
        with pytest.raises(UnauthenticatedError, match="send it so"):
            callers.tenant(wrong, "send it so")
    assert Callers().tenant(None, "") == PUBLIC_TENANT
    assert Callers().tenant("whatever", "") == PUBLIC_TENANT


def test_a_tenants_matrices_are_found_by_its_own_digests_only(tenants: Path) -> None:
    a, b = convection(9), np.ones(81)
    with ServerProcess(BACKSOLVE_TENANTS=str(tenants)) as server:
        uploads = []
        for token in ("r3d-Owl.4", "blu3-Elk.7"):
            for url in (server.http_url, server.grpc_url):
                with Client(url, token=token) as client:
                    np.testing.assert_allclose(a @ client.solve(a, b).x, b, rtol=1e-10)
                    uploads.append(client.stats()["uploads"])
        assert uploads == [1, 0, 1, 0], "the second tenant is not told that anybody has this matrix"
        with Client(server.http_url, token="blu3-Elk.8") as client:
            assert client.solve(a, b).stats.factor_hit, "a tenant may have several tokens"
        for url in (server.http_url, server.grpc_url):
            for token in (None, "red", "r3d-Owl.5"):
                with Client(url, token=token) as client, pytest.raises(UnauthenticatedError):
                    client.solve(a, b)
        assert "Owl" not in server.log()
