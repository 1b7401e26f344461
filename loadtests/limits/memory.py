"""What a server takes beside the matrices and factors that it holds."""

from backsolve import Client
from loadtests.served.watch import resident_bytes
from loadtests.target import Target

from .mix import serve_mix
from .part import Asked, Found, server_on

MOST_MIB = 600.0
MIB = 2**20


def measure(asked: Asked) -> Found:
    """Resident memory after the start, and after a mix of calls, less what the cache says that it holds."""
    found = Found()
    with server_on(None, {}) as server:
        first = resident_bytes(server.pid)
        calls = serve_mix({way: getattr(server, way) for way in asked.ways}, rounds=20 if asked.long else 3)
        with Client(server.http) as client:
            held = client.stats()["cache_bytes"]
        last = resident_bytes(server.pid)
    beside = last - held
    found.targets.append(Target("memory of the server beside its factors, MiB", beside / MIB, MOST_MIB, True))
    found.notes.append(
        f"resident {first / MIB:.0f} MiB after the start, {last / MIB:.0f} MiB after {calls} calls, "
        f"of which {held / MIB:.0f} MiB are matrices and factors"
    )
    found.data = {"start": first, "end": last, "held": held, "calls": calls}
    return found
