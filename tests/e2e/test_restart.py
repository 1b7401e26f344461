"""The server dies in mid-training and comes back; the job never knows."""

import threading

import numpy as np
import pytest
import torch

import backsolve.torch as bt
from backsolve import Client, Pattern
from backsolve.errors import UnreachableError
from support.servers import ServerProcess, free_port
from support.systems import convection

STEPS = 30


def train(client: Client, at_step: "dict[int, object] | None" = None) -> list[float]:
    """Learn the values of a matrix from what it does to eight vectors; returns the losses."""
    a = convection(8, seed=660_182_337)
    pattern = Pattern.from_csr(a)
    rng = np.random.default_rng(120_994_831)
    b = torch.tensor(rng.standard_normal((64, 8)))
    target = bt.spsolve(torch.tensor(a.data), pattern, b, client=client)
    values = torch.tensor(a.data * (1 + 0.2 * rng.standard_normal(a.nnz)), requires_grad=True)
    optimiser = torch.optim.Adam([values], lr=1e-2)
    losses = []
    for step in range(STEPS):
        event = (at_step or {}).get(step)
        if callable(event):
            event()
        optimiser.zero_grad()
        loss = ((bt.spsolve(values, pattern, b, client=client) - target) ** 2).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_training_survives_kill_9(scheme: str) -> None:
    with Client("embedded") as local:
        undisturbed = train(local)
    with ServerProcess() as server:
        url = server.http_url if scheme == "http" else server.grpc_url
        with Client(url) as client:

            def kill_and_restart_soon() -> None:
                server.kill()
                threading.Timer(0.5, lambda: server.start(wait=False)).start()

            disturbed = train(client, {7: kill_and_restart_soon, 19: kill_and_restart_soon})
            # Each restart lost every matrix: pattern and values were sent again.
            assert client.stats()["uploads"] >= STEPS
        server.wait_ready()
    np.testing.assert_allclose(disturbed, undisturbed, rtol=1e-8)
    assert disturbed[-1] < 0.5 * disturbed[0]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_address_where_nothing_listens_is_said_to_be_unreachable(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:{free_port()}", timeout=2.0) as client, pytest.raises(UnreachableError):
        client.solve(np.eye(2), np.ones(2))
