"""What the transports are meant to reach, beside what they did in the same run."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.target import Target

from .solves import SYSTEMS

ADDED_MS = {1_000: 0.35, 10_000: 0.7, 100_000: 2.3, 1_000_000: 16.0}
RATIOS = {10_000: 3.0, 99_856: 1.25, 1_000_000: 1.08}
ADDED_EACH_MS = 0.05
SERVER_MEMORY, CLIENT_MEMORY = 1.5, 2.5


def of_ways(seconds: Mapping[str, float]) -> list[Target]:
    """Speeds of large arrays, of median seconds by way."""
    http, stream, shared = (
        seconds[name] for name in ("HTTP, TCP", "gRPC, as it chooses", "shared memory, client.empty")
    )
    return [
        Target("HTTP over TCP, of the bare socket's speed", seconds["bare socket, TCP"] / http, 0.65, False),
        Target(
            "HTTP over a Unix socket, of the bare one's",
            seconds["bare socket, unix"] / seconds["HTTP, unix"],
            0.65,
            False,
        ),
        Target("gRPC stream, of the bare socket's", seconds["bare socket, TCP"] / stream, 0.35, False),
        Target("gRPC stream, of one protobuf message's", seconds["gRPC unary, protobuf"] / stream, 5.0, False),
        Target("shared memory, of memcpy's", seconds["memcpy, there and back"] / shared, 0.6, False),
    ]


def of_memory(grown: Mapping[str, tuple[float, float]]) -> list[Target]:
    """Peaks, as multiples of the payload."""
    listed = []
    for way, (server, client) in grown.items():
        listed.append(Target(f"memory of the server over {way}, of the payload", server, SERVER_MEMORY, True))
        listed.append(Target(f"memory of the client over {way}, of the payload", client, CLIENT_MEMORY, True))
    return listed


def of_solves(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Cached solves over HTTP."""
    listed = []
    for row in rows:
        n = row["n"]
        if row["what"] == "tridiagonal":
            added = 1e3 * (row["http"] - row["embedded"])
            listed.append(Target(f"added to a solve in-process, n = {n}, in ms", added, ADDED_MS[n], True))
        elif row["what"] == "grid":
            listed.append(Target(f"of splu's time by hand, n = {n}", row["http"] / row["hand"], RATIOS[n], True))
        else:
            added = 1e3 * (row["http"] - row["embedded"]) / SYSTEMS
            listed.append(Target(f"added to each of {row['what']}, n = {n}, in ms", added, ADDED_EACH_MS, True))
    return listed
