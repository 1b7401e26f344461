"""A REST server over a real data plane."""

from collections.abc import Iterator

import pytest

from backsolve_service.dataplane.plane import DataPlane, PlaneConfig
from support.rest import serving

LIMIT = 64 << 20


@pytest.fixture(scope="session")
def plane() -> Iterator[DataPlane]:
    plane = DataPlane(PlaneConfig(workers=1, max_payload_bytes=LIMIT))
    yield plane
    plane.close()


@pytest.fixture(scope="session")
def port(plane: DataPlane) -> Iterator[int]:
    with serving(plane) as server:
        yield server.port
