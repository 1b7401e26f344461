"""From a URL or the environment to one endpoint, and how long a call is repeated."""

import time

import pytest

from backsolve.config import Endpoint, default_timeout, resolve
from backsolve.errors import (
    DeadlineError,
    InternalError,
    InvalidOptionError,
    InvalidShapeError,
    QueueFullError,
    UnreachableError,
)
from backsolve.retry import Budget


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


def failing(error: Exception, times: int) -> tuple[list[float | None], object]:
    calls: list[float | None] = []

    def attempt(left: float | None) -> str:
        calls.append(left)
        if len(calls) <= times:
            raise error
        return "answer"

    return calls, attempt


def test_a_busy_server_is_asked_again() -> None:
    calls, attempt = failing(QueueFullError("full", retry_after=0.01), 3)
    assert Budget(30.0, met_before=True).run(attempt) == "answer"  # type: ignore[arg-type]
    assert len(calls) == 4


def test_a_wrong_call_is_not_repeated() -> None:
    calls, attempt = failing(InvalidShapeError("no"), 5)
    with pytest.raises(InvalidShapeError):
        Budget(30.0, met_before=True).run(attempt)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_an_internal_error_is_repeated_once() -> None:
    calls, attempt = failing(InternalError("id"), 5)
    with pytest.raises(InternalError):
        Budget(30.0, met_before=True).run(attempt)  # type: ignore[arg-type]
    assert len(calls) == 2


def test_attempts_share_one_deadline() -> None:
    calls, attempt = failing(UnreachableError("gone"), 10_000)
    started = time.monotonic()
    with pytest.raises((UnreachableError, DeadlineError)):
        Budget(0.4, met_before=True).run(attempt)  # type: ignore[arg-type]
    assert time.monotonic() - started < 30
    lefts = [left for left in calls if left is not None]
    assert len(lefts) > 1
    assert lefts == sorted(lefts, reverse=True)


def test_no_deadline_hands_none_down() -> None:
    calls, attempt = failing(QueueFullError("full"), 0)
    Budget(None, met_before=True).run(attempt)  # type: ignore[arg-type]
    assert calls == [None]
