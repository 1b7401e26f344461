"""The ways that are timed against each other all bring back what they were sent."""

from loadtests.transports.__main__ import speeds

SMALL, STREAMED = 8192, 5_000_000


def test_every_way_answers_in_one_message_and_in_several() -> None:
    found = dict(speeds([SMALL, STREAMED], 1))
    assert list(found) == [SMALL, STREAMED]
    for seconds in found.values():
        assert any(name.startswith("HTTP") for name in seconds)
        assert any(name.startswith("gRPC") for name in seconds)
        assert all(len(taken) == 1 for taken in seconds.values())
