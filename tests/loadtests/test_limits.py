"""The lean generator counts what a server answers, and sees what is wrong; figures at its limits are measured."""

from dataclasses import replace

import numpy as np
import pytest

from backsolve import Client
from loadtests.limits import coalescing, rate
from loadtests.limits.lean import CHECK_EVERY, Generator, Rate, drive, prepare
from loadtests.limits.line import BrokenLineError, GrpcLine, HttpLine, frame
from scripts.local_server import LocalServer

HEADERS = [(":method", "POST"), (":path", "/x")]


@pytest.fixture(scope="module")
def own():
    with LocalServer({"BACKSOLVE_LOG_LEVEL": "error"}) as server:
        yield server


def replies_of(line, data, cut):
    return line.came(data[:cut]) + line.came(data[cut:])


def test_a_reply_over_http_is_whole_wherever_it_is_cut():
    reply = b"HTTP/1.1 200 OK\r\ndate: x\r\ncontent-length: 5\r\nmore: y\r\n\r\nabcde"
    for cut in range(len(reply) + 1):
        line = HttpLine()
        assert replies_of(line, reply, cut) == [(0, b"abcde")]
        assert line.came(reply) == [(0, b"abcde")]
    with pytest.raises(BrokenLineError, match="503"):
        HttpLine().came(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")


def test_replies_over_grpc_are_whole_wherever_they_are_cut():
    settings, ping = frame(4, 0, 0, b"\0\4\0\1\0\0"), frame(6, 0, 0, b"12345678")
    first = frame(1, 4, 1, b"head") + frame(0, 0, 1, b"\0\0\0\0\4ab")
    second = frame(1, 4, 3, b"head") + frame(0, 0, 3, b"\0\0\0\0\1z") + frame(1, 5, 3, b"end")
    data = settings + first + second + ping + frame(0, 0, 1, b"cd") + frame(1, 5, 1, b"end")
    for cut in range(len(data) + 1):
        line = GrpcLine(HEADERS)
        line.ask(7, b"one")
        line.ask(4, b"two")
        assert replies_of(line, data, cut) == [(4, b"z"), (7, b"abcd")]
        assert line.owed() == frame(4, 1, 0) + frame(6, 1, 0, b"12345678")
        assert line.owed() == b""
    for refusal in (frame(1, 5, 1, b"trailers alone"), frame(3, 0, 1, b"\0\0\0\2"), frame(7, 0, 0, bytes(8))):
        line = GrpcLine(HEADERS)
        line.ask(0, b"one")
        with pytest.raises(BrokenLineError):
            line.came(refusal)


def test_requests_over_grpc_wait_for_the_room_that_the_server_gives():
    line, large = GrpcLine(HEADERS), bytes(40_000)
    assert len(line.ask(0, large)) > len(large)
    assert line.ask(1, large) == b""
    assert line.ask(2, b"small") == b""  # behind the one that waits
    assert line.owed() == b""
    line.came(frame(8, 0, 0, (20_000).to_bytes(4, "big")))
    sent = line.owed()
    assert large in sent
    assert sent.endswith(b"small")
    assert line.owed() == b""


@pytest.mark.parametrize("way", ["http", "grpc"])
@pytest.mark.parametrize(("callers", "connections"), [(5, 5), (5, 2)])
def test_every_answer_of_the_server_is_counted_once(own, way, callers, connections):
    load = prepare(getattr(own, way), rate.matrix(30))
    with Client(own.http) as client, Generator(None) as generator:
        before = client.stats()["solves"]
        found = generator.drive(load, callers=callers, connections=connections, seconds=0.4, warm=0.0)
        assert found.answered == client.stats()["solves"] - before
    assert found.latencies.size == found.answered > callers
    assert found.checked == found.answered // CHECK_EVERY
    assert found.wrong == 0
    assert 0 < found.latencies.min() <= found.percentile(50) <= found.seconds
    assert found.seconds >= 0.4


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_wrong_answers_are_seen(own, way):
    load = prepare(getattr(own, way), rate.matrix(30))
    answers = load.answers.copy()
    answers[:, 11] += 1e-6 * np.abs(answers).max()
    found = drive(replace(load, answers=answers), 3, 3, 0.3, 0.0)
    assert found.wrong == found.checked > 0
    assert rate.faults(found, "x")


def test_a_generator_that_fails_says_why(own):
    load = prepare(own.http, rate.matrix(30))
    with Generator(None) as generator, pytest.raises(RuntimeError, match="404"):
        generator.drive(
            replace(load, requests=(load.requests[0].replace(b"/v1/solve", b"/v1/solvX"),)), callers=1, seconds=0.1
        )


def test_the_rate_is_measured_beside_its_target_with_a_profile_of_the_server():
    from loadtests.limits.part import Asked

    found = rate.measure(Asked(profile=True, ways=("http",), seconds=0.4))
    assert found.faults == []
    target, processor = found.targets
    assert target.value == pytest.approx(found.data["http"]["per_second"])
    assert (target.bound, target.at_most) == (3000, False)
    assert 0 < found.data["http"]["server_seconds"] < 1
    assert processor.value == pytest.approx(1e6 * found.data["http"]["server_seconds"])
    assert (processor.bound, processor.at_most) == (pytest.approx(1e6 / 3000), True)
    # Each request is computed once, and so is its certificate.
    counted = [line for line in found.notes[-1].splitlines() if "(rest/handlers.py" in line and "compute" in line]
    assert [float(line.split()[1]) for line in counted] == [pytest.approx(1.0, abs=0.2)]


def rate_of(count, seconds, latency, checked=1, wrong=0):
    return Rate(seconds, count, checked, wrong, np.full(count, latency), 0.1)


def test_what_joining_gains_is_the_median_of_the_rounds_each_of_which_changes_who_is_first():
    asked = []
    counts = {"joined": iter((300, 900, 400)), "single": iter((100, 100, 200))}
    waits = {"joined": iter((0.2, 0.3, 0.9)), "single": iter((0.1, 0.3, 0.6))}

    def run(name):
        asked.append(name)
        return rate_of(next(counts[name]), 2.0, next(waits[name]))

    pair = coalescing.Pair(3)
    pair.run(run)
    assert asked == ["joined", "single", "single", "joined", "joined", "single"]
    assert pair.gain() == pytest.approx(3.0)  # of 3, 9 and 2
    assert pair.wait() == pytest.approx(1.5)  # of 2, 1 and 1.5
    assert pair.median("single", lambda rate: rate.per_second) == pytest.approx(50)
    assert pair.faults("x") == []


def test_answers_that_are_wrong_or_that_nobody_checked_are_faults():
    for checked, wrong in ((0, 0), (3, 1)):
        pair = coalescing.Pair(1)
        pair.run(lambda name, checked=checked, wrong=wrong: rate_of(9, 1.0, 0.1, checked, wrong))
        assert len(pair.faults("x")) == 2


def test_the_two_servers_differ_in_whether_they_join(monkeypatch):
    from loadtests.limits.part import Asked

    monkeypatch.setattr(coalescing, "ROUNDS", 1)
    found = coalescing.measure(Asked(ways=("http",), seconds=0.5))
    assert found.faults == []
    gain, wait = found.targets
    assert (gain.bound, gain.at_most, wait.at_most) == (2.5, False, True)
    assert gain.value == found.data["http"]["gain"] > 0
    assert found.data["http"]["width"]["single"] == 1
    assert found.data["http"]["width"]["joined"] > 2
