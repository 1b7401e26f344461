"""How much memory one large solve takes at its peak, of the server and of the client, each a fresh process.

`python -m loadtests.transports.memory http|grpc PORT PID BYTES` is such a client; it prints both growths in bytes.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from backsolve._transports.base import SolveCall, Transport
from backsolve._transports.grpc import GrpcTransport
from backsolve._transports.http import HttpTransport
from backsolve.types import MatrixRef, Options

_REF = MatrixRef(b"\x17" * 32, b"\x2f" * 32)
_SMALL = 1 << 17


def peak(pid: int | str) -> int:
    """Bytes that a process has had resident at most."""
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def growth(way: str, nbytes: int) -> tuple[float, float]:
    """Server's and client's growth over one solve of so many bytes each way, in multiples of them."""
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "loadtests.transports.echo", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            port = json.loads(server.stdout.readline())[way]
            arguments = [way, str(port), str(server.pid), str(nbytes)]
            client = [sys.executable, "-m", "loadtests.transports.memory", *arguments]
            grown = json.loads(subprocess.run(client, stdout=subprocess.PIPE, check=True, timeout=120).stdout)
            return grown[0] / nbytes, grown[1] / nbytes
        finally:
            server.communicate()


def main() -> None:
    """Be the client."""
    way, port, pid, nbytes = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    address = f"127.0.0.1:{port}"
    transport: Transport = HttpTransport(f"http://{address}") if way == "http" else GrpcTransport(address)
    transport.solve(SolveCall(_REF, Options(), np.ones(_SMALL)), 60)
    rhs = np.ones(nbytes // 8)
    before = peak(pid), peak("self")
    transport.solve(SolveCall(_REF, Options(), rhs), 60)
    print(json.dumps([peak(pid) - before[0], peak("self") - before[1]]))
    transport.close()


if __name__ == "__main__":
    main()
