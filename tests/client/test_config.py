"""From a URL or the environment to one endpoint."""

import pytest

from backsolve.config import Endpoint, default_timeout, resolve
from backsolve.errors import InvalidOptionError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host", ("http", "host", 8080)),
        ("http://host:81/", ("http", "host", 81)),
        ("https://host", ("https", "host", 443)),
        ("grpc://host", ("grpc", "host", 50051)),
        ("grpcs://host:9", ("grpcs", "host", 9)),
        ("backsolve://host", ("backsolve", "host", 8080)),
        ("http://[::1]:8080", ("http", "::1", 8080)),
    ],
)
def test_urls(url: str, expected: tuple[str, str, int]) -> None:
    endpoint = resolve(url, environment={})
    assert (endpoint.scheme, endpoint.host, endpoint.port) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("unix:/run/a.sock", ("unix", "/run/a.sock")),
        ("unix:///run/a.sock", ("unix", "/run/a.sock")),
        ("unix:/run/a%20b?c#d:1", ("unix", "/run/a%20b?c#d:1")),
        ("grpc+unix:/run/a.sock", ("grpc+unix", "/run/a.sock")),
        ("backsolve+unix:/run/a.sock", ("backsolve+unix", "/run/a.sock")),
        ("grpc+unix:///" + 106 * "a", ("grpc+unix", "/" + 106 * "a")),
    ],
)
def test_paths(url: str, expected: tuple[str, str]) -> None:
    endpoint = resolve(url, "t", environment={})
    assert endpoint == Endpoint(expected[0], token="t", path=expected[1])
    assert endpoint.address == expected[1]


@pytest.mark.parametrize("url", ["unix:", "unix:run/a", "unix://host/run/a", "grpc+unix:a", "unix:/" + 107 * "a"])
def test_paths_that_are_not_absolute_or_too_long_are_refused(url: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"URL.* Unix socket"):
        resolve(url, environment={})


def test_a_socket_needs_no_authorities() -> None:
    with pytest.raises(InvalidOptionError, match="ca_file="):
        resolve("unix:/run/a.sock", ca_file="c", environment={})


def test_ipv6_addresses_keep_their_brackets() -> None:
    assert resolve("http://[::1]:80", environment={}).address == "[::1]:80"


def test_the_environment_is_used_unless_an_argument_is_given() -> None:
    environment = {"BACKSOLVE_URL": "grpcs://a:1", "BACKSOLVE_TOKEN": "t", "BACKSOLVE_CA_FILE": "c"}
    assert resolve(None, environment=environment) == Endpoint("grpcs", "a", 1, "t", "c")
    assert resolve("http://b:2", "u", environment=environment) == Endpoint("http", "b", 2, "u", "c")
    assert resolve(None, environment={}) == Endpoint("embedded")
    assert resolve("embedded", environment=environment) == Endpoint("embedded")


@pytest.mark.parametrize(
    ("url", "arguments"),
    [
        (None, {"token": "t"}),
        ("embedded", {"ca_file": "c"}),
        ("http://host", {"ca_file": "c"}),
        ("grpc://host", {"ca_file": "c"}),
    ],
)
def test_arguments_that_the_way_in_does_not_use_are_refused(url: str | None, arguments: dict[str, str]) -> None:
    with pytest.raises(InvalidOptionError, match=r"token=|ca_file="):
        resolve(url, environment={}, **arguments)


def test_the_default_timeout_comes_from_the_environment() -> None:
    assert default_timeout({}) == 60.0
    assert default_timeout({"BACKSOLVE_TIMEOUT": "2.5"}) == 2.5
    for wrong in ("soon", "0", "-1", "nan", "inf"):
        with pytest.raises(InvalidOptionError, match="BACKSOLVE_TIMEOUT"):
            default_timeout({"BACKSOLVE_TIMEOUT": wrong})


@pytest.mark.parametrize(
    "url",
    ["host:8080", "ftp://host", "http://host:99999", "http://host/v1", "http://u:p@host", "http://", "http://h?q=1"],
)
def test_other_urls_are_refused_with_the_form(url: str) -> None:
    with pytest.raises(InvalidOptionError, match=r"URL"):
        resolve(url, environment={})
