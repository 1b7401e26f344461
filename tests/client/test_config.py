"""From a URL or the environment to one endpoint."""

import pytest

from backsolve.config import Endpoint, default_timeout, resolve, resolve_all
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


def test_several_urls_name_replicas() -> None:
    expected = (
        Endpoint("http", "a", 8080, "t"),
        Endpoint("grpc", "b", 1, "t"),
        Endpoint("unix", token="t", path="/x,y"),
    )
    for urls in ("http://a, grpc://b:1,unix:/x,y", ["http://a", "grpc://b:1", "unix:/x,y"]):
        assert resolve_all(urls, "t", environment={}) == expected
    assert resolve_all(None, environment={"BACKSOLVE_URL": "http://a,http://b"}) == (
        Endpoint("http", "a", 8080),
        Endpoint("http", "b", 8080),
    )
    assert resolve_all(None, environment={}) == (Endpoint("embedded"),)


def test_a_name_stands_for_its_addresses() -> None:
    (named,) = resolve_all("dns+grpc://solvers", environment={})
    assert named == Endpoint("dns+grpc", "solvers", 50051)
    assert named.named
    assert named.addressed("fd00::1") == Endpoint("grpc", "fd00::1", 50051)


@pytest.mark.parametrize("url", ["http://a:1", "grpc://[::1]:2", "unix:/run/x", "dns+http://a:8080", "embedded"])
def test_an_endpoint_says_its_url(url: str) -> None:
    (endpoint,) = resolve_all(url, environment={})
    assert endpoint.url == url


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ([], "empty"),
        (["http://a", ""], "empty"),
        (["http://a", None], "list of URLs"),
        ("http://a,http://a:8080", "once"),
        (["http://a", "embedded"], "stand alone"),
        ("http://a,dns+http://b", "stand alone"),
        ("dns+https://a", "certificates"),
        ("http://a,ftp://b", "begin with"),
        ("http://a,b:8080", "its own scheme"),
    ],
)
def test_urls_that_do_not_go_together(urls: object, words: str) -> None:
    with pytest.raises(InvalidOptionError, match=words):
        resolve_all(urls, environment={})
