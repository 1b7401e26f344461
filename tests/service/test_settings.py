"""The environment is read once, strictly, and its faults are told in words."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from backsolve_service.settings import VARIABLES, ConfigurationError, Settings, describe, format_size, load, parse_size

SECRET = "s3cr3t-9f27c1"


@pytest.fixture
def env(monkeypatch):
    """An environment without any BACKSOLVE_* variable, and a way to set some."""
    for name in tuple(os.environ):
        if name.upper().startswith("BACKSOLVE_"):
            monkeypatch.delenv(name)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"BACKSOLVE_{name}", value)

    return put


def refusal():
    with pytest.raises(ConfigurationError) as caught:
        load()
    return caught.value.lines


def test_defaults(env):
    settings = load()
    assert (settings.host, settings.http_port, settings.grpc_port) == ("127.0.0.1", 8080, 50051)
    assert settings.device == "cpu"
    assert settings.workers == len(os.sched_getaffinity(0))
    assert settings.cache_bytes == 2 * 2**30
    assert settings.token is None
    assert not settings.allow_anonymous


def test_every_variable_is_read(env, tmp_path):
    pem = tmp_path / "some.pem"
    pem.write_text("x")
    tenants = tmp_path / "tenants"
    tenants.write_text("red r3d-Owl.4")
    given = {
        "HOST": "0.0.0.0",
        "HTTP_PORT": "0",
        "GRPC_PORT": "65535",
        "UNIX_HTTP": "/run/backsolve/http",
        "UNIX_GRPC": "/run/backsolve/grpc",
        "UNIX_SHARED": "/run/backsolve/shared",
        "UNIX_MODE": "0660",
        "SHARED_BYTES": "2GiB",
        "SHARED_CLIENT_BYTES": "256MiB",
        "SHARED_REGIONS": "40",
        "SHARED_CLIENT_REGIONS": "4",
        "DEVICE": "cuda:1",
        "WORKERS": "3",
        "PROCESSES": "2",
        "STUCK_SECONDS": "60.5",
        "CACHE_BYTES": "1.5GiB",
        "DEVICE_CACHE_BYTES": "30GB",
        "MAX_PAYLOAD_BYTES": "512 MB",
        "QUEUE_DEPTH": "17",
        "QUEUE_BYTES": "1Gi",
        "BLOCK_COLUMNS": "8",
        "TOKEN": SECRET,
        "TENANTS": str(tenants),
        "TLS_CERT": str(pem),
        "TLS_KEY": str(pem),
        "TLS_CLIENT_CA": str(pem),
        "ALLOW_ANONYMOUS": "1",
        "LOG_LEVEL": "debug",
        "DRAIN_SECONDS": "2.5",
        "INSTANCE": "replica-7",
    }
    assert {f"BACKSOLVE_{name}" for name in given} == set(VARIABLES)
    env(**given)
    settings = load()
    assert settings.model_dump(exclude={"token"}) == {
        "host": "0.0.0.0",
        "http_port": 0,
        "grpc_port": 65535,
        "unix_http": Path("/run/backsolve/http"),
        "unix_grpc": Path("/run/backsolve/grpc"),
        "unix_shared": Path("/run/backsolve/shared"),
        "unix_mode": 0o660,
        "shared_bytes": 2**31,
        "shared_client_bytes": 2**28,
        "shared_regions": 40,
        "shared_client_regions": 4,
        "device": "cuda:1",
        "workers": 3,
        "processes": 2,
        "stuck_seconds": 60.5,
        "cache_bytes": 1610612736,
        "device_cache_bytes": 30_000_000_000,
        "max_payload_bytes": 512_000_000,
        "queue_depth": 17,
        "queue_bytes": 2**30,
        "block_columns": 8,
        "tenants": tenants,
        "tls_cert": pem,
        "tls_key": pem,
        "tls_client_ca": pem,
        "allow_anonymous": True,
        "log_level": "debug",
        "drain_seconds": 2.5,
        "instance": "replica-7",
    }
    assert settings.token is not None
    assert settings.token.get_secret_value() == SECRET
    assert SECRET not in f"{settings!r}{settings}"


def test_settings_cannot_be_changed_or_extended(env):
    settings = load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.http_port = 1
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings(colour="red")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("HTTP_PORT", "65536", "BACKSOLVE_HTTP_PORT='65536': .*65535"),
        ("GRPC_PORT", "eighty", "BACKSOLVE_GRPC_PORT='eighty': .*integer"),
        ("WORKERS", "0", "BACKSOLVE_WORKERS='0': .*1"),
        ("DEVICE", "gpu", "BACKSOLVE_DEVICE='gpu': no such device: write \"cpu\""),
        ("CACHE_BYTES", "2GiBB", "BACKSOLVE_CACHE_BYTES='2GiBB': not a size: write bytes"),
        ("CACHE_BYTES", "-1", "BACKSOLVE_CACHE_BYTES='-1': not a size"),
        ("CACHE_BYTES", "0", "BACKSOLVE_CACHE_BYTES='0': "),
        ("DRAIN_SECONDS", "nan", "BACKSOLVE_DRAIN_SECONDS='nan': .*finite"),
        ("LOG_LEVEL", "loud", "BACKSOLVE_LOG_LEVEL='loud': .*'debug', 'info'"),
        ("INSTANCE", "a b", "BACKSOLVE_INSTANCE='a b': use at most"),
        ("UNIX_HTTP", "http.sock", "BACKSOLVE_UNIX_HTTP='http.sock': give an absolute path"),
        ("UNIX_GRPC", "/" + 107 * "a", "BACKSOLVE_UNIX_GRPC='.*': the path of a Unix socket has at most 107 bytes"),
        ("UNIX_MODE", "rw", "BACKSOLVE_UNIX_MODE='rw': not permissions: write three octal digits"),
        ("UNIX_MODE", "0888", "BACKSOLVE_UNIX_MODE='0888'"),
        ("TLS_CERT", "/nonexistent.pem", "BACKSOLVE_TLS_CERT='/nonexistent.pem': .*file"),
        ("ALLOW_ANONYMOUS", "maybe", "BACKSOLVE_ALLOW_ANONYMOUS='maybe': "),
        ("HTTP_PORT", "tcp://10.0.0.1:80", "enableServiceLinks: false"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_its_variable(env, name, value, text):
    env(**{name: value})
    (line,) = refusal()
    assert "\n" not in line
    with pytest.raises(ConfigurationError, match=text):
        load()


def test_all_faults_are_told_at_once(env):
    env(HTTP_PORT="x", GRPC_PORT="y", HOTS="z")
    assert [line[:18] for line in refusal()] == ["BACKSOLVE_HOTS: th", "BACKSOLVE_HTTP_POR", "BACKSOLVE_GRPC_POR"]


@pytest.mark.parametrize("token", [SECRET + " with space", SECRET + "\tü"])
def test_a_bad_token_is_not_shown(env, token):
    env(TOKEN=token)
    (line,) = refusal()
    assert line.startswith("BACKSOLVE_TOKEN: ")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("HTTPPORT", "HTTP_PORT"), ("PORT", "HTTP_PORT"), ("CACHE_SIZE", "CACHE_BYTES"), ("TOKNE", "TOKEN")],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(env, name, nearest):
    env(**{name: "8123"})
    (line,) = refusal()
    assert line.startswith(f"BACKSOLVE_{name}: there is no such setting; the nearest is BACKSOLVE_{nearest} ")
    assert "8123" not in line


def test_variables_of_the_client_and_of_kubernetes_are_left_alone(env):
    address = "tcp://10.96.0.12:8080"
    env(URL="http://other:8080", CA_FILE="/ca.pem", TIMEOUT="5", PORT=address)
    env(SERVICE_HOST="10.96.0.12", SERVICE_PORT="8080", SERVICE_PORT_HTTP="8080", PORT_8080_TCP=address)
    env(PORT_8080_TCP_PROTO="tcp", PORT_8080_TCP_PORT="8080", PORT_8080_TCP_ADDR="10.96.0.12")
    env(GPU_PORT=address, GPU_SERVICE_HOST="10.96.0.13", GPU_SERVICE_PORT_GRPC="50051")
    assert load().http_port == 8080


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.3.4", "solver.example"])
def test_listening_beyond_loopback_needs_credentials_or_a_word(env, host):
    env(HOST=host)
    (line,) = refusal()
    assert "BACKSOLVE_ALLOW_ANONYMOUS=1" in line
    env(ALLOW_ANONYMOUS="1")
    assert load().host == host


@pytest.mark.parametrize("pair", [("HTTP", "GRPC"), ("HTTP", "SHARED"), ("GRPC", "SHARED")])
def test_unix_sockets_differ(env, pair):
    env(UNIX_HTTP="/run/h", UNIX_GRPC="/run/g", UNIX_SHARED="/run/s")
    assert load().unix_shared is not None
    env(**{f"UNIX_{name}": "/run/x" for name in pair})
    assert "choose different paths" in refusal()[0]


def test_a_token_is_credentials_enough_and_an_empty_one_is_none(env):
    env(HOST="0.0.0.0", TOKEN="")
    (line,) = refusal()
    assert "BACKSOLVE_TOKEN" in line
    env(TOKEN=SECRET)
    assert load().host == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(env, host):
    env(HOST=host)
    assert load().host == host


def test_a_certificate_alone_lets_nobody_in_and_needs_its_key(env, tmp_path):
    pem = tmp_path / "some.pem"
    pem.write_text("x")
    env(TLS_CERT=str(pem))
    assert "belong together" in refusal()[0]
    env(TLS_KEY=str(pem), HOST="0.0.0.0")
    assert "ALLOW_ANONYMOUS" in refusal()[0]
    env(TLS_CLIENT_CA=str(pem))
    assert load().tls_client_ca == pem


@pytest.mark.parametrize("count", [1, 1023, 1024, 3 * 2**20, 2**31, 5 * 2**40, 10**9])
def test_sizes_survive_being_written(count):
    assert parse_size(format_size(count)) == count


def test_every_variable_is_described():
    text = describe()
    assert len(text.splitlines()) == len(VARIABLES)
    for variable in VARIABLES:
        assert f"  {variable} " in text
    assert "[2GiB]" in text
