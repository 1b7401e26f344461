"""Unix sockets: who may connect, what is left behind, and what is never taken from another process."""

import gc
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backsolve import Client
from backsolve.errors import UnauthenticatedError, UnreachableError
from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from backsolve_service.grpc.server import GrpcConfig, GrpcServer
from backsolve_service.unixsocket import SocketFile
from support.servers import ServerProcess

TLS = Path(__file__).parent / "tls"
WAYS = ("unix", "grpc+unix")
A, B = np.diag([4.0, 2.0]), np.array([2.0, 6.0])
X = [0.5, 3.0]


def solves(url: str, **options: str) -> bool:
    with Client(url, **options) as client:
        return bool(client.solve(A, B).x.tolist() == X)


def files(server: ServerProcess) -> list[Path]:
    return [server.folder / "grpc", server.folder / "http", server.folder / "shared"]


def permissions(server: ServerProcess) -> set[str]:
    return {stat.filemode(file.lstat().st_mode) for file in files(server)}


def test_the_life_of_the_files() -> None:
    with ServerProcess() as server:
        assert permissions(server) == {"srw-------"}
        assert all(solves(server.url(way)) for way in WAYS)
        server.kill()
        assert permissions(server) == {"srw-------"}
        server.start()  # what a killed server left is replaced
        assert all(solves(server.url(way)) for way in WAYS)
        assert server.stop() == 0
        assert not [*server.folder.iterdir()]
        for way in WAYS:
            with Client(server.url(way), timeout=60.0) as client, pytest.raises(UnreachableError, match=r"http|grpc"):
                client.info()


@pytest.mark.parametrize(
    ("name", "variable"),
    [("http", "BACKSOLVE_UNIX_HTTP"), ("grpc", "BACKSOLVE_UNIX_GRPC"), ("shared", "BACKSOLVE_UNIX_SHARED")],
)
def test_a_socket_in_use_is_left_to_its_owner(server: ServerProcess, name: str, variable: str) -> None:
    second = ServerProcess(**{variable: str(server.folder / name)})
    with pytest.raises(RuntimeError, match=rf"ended with code 1(?s:.*)another process listens there; see {variable}"):
        second.start()
    second.__exit__(None, None, None)
    assert all(solves(server.url(way)) for way in WAYS)


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    kept = tmp_path / "notes"
    kept.write_text("mine")
    (tmp_path / "link").symlink_to(kept)
    for path in (kept, tmp_path / "link", tmp_path):
        with pytest.raises(OSError, match="no socket"):
            SocketFile(path, 0o600).check()
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_whatever_listens_is_in_use(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as theirs:
        theirs.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            theirs.listen()
        with pytest.raises(OSError, match="another process"):
            SocketFile(path, 0o600).check()
        assert path.exists()
    SocketFile(path, 0o600).check()
    assert not path.exists()


def test_the_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = SocketFile(path, 0o600)
    first.listen().close()
    with SocketFile(path, 0o600).listen():
        first.remove()
        assert path.exists()


def test_grpc_does_not_remove_its_successors_socket(tmp_path: Path) -> None:
    """On its own account gRPC unlinks, when it ends, what it was told to bind, whosever it is by then."""
    path = tmp_path / "s"
    plane = DataPlane(PlaneConfig(workers=1))
    first = GrpcServer(plane, GrpcConfig(unix=SocketFile(path, 0o600)))
    first.start()
    path.unlink()
    with SocketFile(path, 0o600).listen():
        first.stop(0)
        del first
        for _ in range(20):
            gc.collect()
            assert path.exists()
            time.sleep(0.05)
    plane.close()


def test_nothing_is_left_of_a_socket_that_could_not_be_made(tmp_path: Path) -> None:
    class MineError(Exception):
        pass

    def fail() -> None:
        with SocketFile(tmp_path / "s", 0o600).claimed() as place, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            raise MineError

    with pytest.raises(MineError):
        fail()
    assert not [*tmp_path.iterdir()]


def test_a_system_without_unix_sockets_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with Client("unix:/run/s", timeout=5.0) as client, pytest.raises(UnreachableError, match="no Unix sockets"):
        client.info()


def test_the_client_loads_where_there_are_no_descriptors_to_share() -> None:
    script = "import sys; sys.modules['fcntl'] = None; import os; del os.memfd_create\n"
    script += (
        "from backsolve._transports.shared import SharedMemory; from backsolve._transports import discover, http\n"
    )
    script += "assert not SharedMemory('/run/s').connect()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "no sealed anonymous memory" in done.stderr


def test_the_callers_umask_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        SocketFile(tmp_path / "s", 0o666).listen().close()
        assert stat.S_IMODE((tmp_path / "s").lstat().st_mode) == 0o666
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_two_that_start_at_once_do_not_take_each_others_socket(tmp_path: Path) -> None:
    """Both see the same dead socket; the second must wait until the first listens, and then finds it in use."""
    path = tmp_path / "s"
    SocketFile(path, 0o600).listen().close()
    refusals: list[str] = []

    def second() -> None:
        try:
            SocketFile(path, 0o600).listen()
        except OSError as error:
            refusals.append(str(error.strerror))

    racer = threading.Thread(target=second)
    with socket.socket(socket.AF_UNIX) as listener:
        with SocketFile(path, 0o600).claimed() as place:
            assert not path.exists()
            racer.start()
            racer.join(0.3)
            assert racer.is_alive()
            listener.bind(str(place))
            listener.listen()
        racer.join(60)
        assert refusals == ["another process listens there"]


def test_the_token_is_asked_for_there_too_and_the_mode_is_set() -> None:
    with ServerProcess(BACKSOLVE_TOKEN="k7-Heron.19", BACKSOLVE_UNIX_MODE="0660") as server:
        assert permissions(server) == {"srw-rw----"}
        for way in WAYS:
            assert solves(server.url(way), token="k7-Heron.19")
            with Client(server.url(way)) as stranger, pytest.raises(UnauthenticatedError):
                stranger.solve(A, B)


def test_beside_tls_the_sockets_stay_plain(tmp_path: Path) -> None:
    """Their permissions say who may call: neither a certificate nor the encryption adds anything."""
    names = {"CERT": "cert.pem", "KEY": "key.pem", "CLIENT_CA": "cert.pem"}
    server = ServerProcess(**{f"BACKSOLVE_TLS_{name}": str(TLS / file) for name, file in names.items()})
    server.start(wait=False)
    try:
        while not all(file.exists() for file in files(server)):
            assert server.ended is None
            time.sleep(0.05)
        assert all(solves(server.url(way)) for way in WAYS)
    finally:
        server.__exit__(None, None, None)
