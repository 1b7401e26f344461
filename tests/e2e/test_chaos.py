"""Killed, frozen, cut off, lied to: no wrong answer, no call beyond its deadline, nothing kept.

`python -m loadtests.chaos` plays the long form, 200 rounds.
"""

import socket
from urllib.parse import urlsplit

import pytest

from backsolve import Client
from backsolve.types import ErrorCode
from loadtests.chaos.callers import GoodCallers
from loadtests.chaos.proxy import Proxy
from loadtests.chaos.rounds import FAULTS, SETTINGS, left_behind, open_files, play, rounds
from scripts.local_server import LocalServer

SEED = 773_460_192
EXCUSES = {
    "kill": {"UNREACHABLE"},
    "freeze": {"UNREACHABLE"},
    "cut": {"UNREACHABLE"},
    "garble": {code.name for code in ErrorCode},
}
"""What callers may be told beside DEADLINE: their server or their wire is broken."""

ROUNDS = rounds(2 * len(FAULTS), SEED)


@pytest.fixture(scope="module")
def victim():
    with LocalServer(dict(SETTINGS)) as server:
        yield server, {}


def test_the_rounds_are_every_fault_over_every_transport():
    assert {(each.fault, each.transport) for each in ROUNDS} == {(f, t) for f in FAULTS for t in ("http", "grpc")}
    assert rounds(2 * len(FAULTS), SEED) == ROUNDS
    assert len({each.seed for each in rounds(200, SEED)}) == 200


@pytest.mark.parametrize("chosen", ROUNDS, ids=lambda each: f"{each.fault}-{each.transport}")
def test_nothing_goes_wrong_that_should_not(victim, chosen):
    server, files = victim
    found = play(server, chosen, files)
    assert not found.faults, "\n".join([*found.faults, server.log()[-3000:]])
    assert found.answered + sum(found.errors.values()) >= 24
    # A busy machine may make anybody late; but what others do wrong, nobody else is told of.
    assert set(found.errors) <= {"DEADLINE", *EXCUSES.get(chosen.fault, ())}


def test_what_is_left_behind_is_noticed(victim):
    """Half a body holds its memory for as long as its sender stays."""
    server, _ = victim
    files = open_files(server.pid)
    address = urlsplit(server.http)
    with socket.create_connection((address.hostname, address.port), timeout=30) as sock:
        sock.sendall(
            b"POST /v1/solve HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-safetensors\r\n"
            b"content-length: 30000\r\n\r\n" + bytes(100)
        )
        with Client(server.http) as client:
            while not client.stats()["body_bytes"]:
                pass
        assert left_behind(server, files, patience=0.2) == ["body_bytes: 30000 when nobody calls"]
        assert left_behind(server, files - 100, patience=0.2)[-1].startswith("open files beyond the first")
    assert left_behind(server, files) == []


def test_a_wire_that_breaks_does_break(victim):
    server, _ = victim
    with Proxy(server.http, SEED, cuts=True) as wire:
        callers = GoodCallers(wire.url, SEED, count=2)
        callers.start()
        assert not callers.join().faults
        assert wire.harmed > 0
