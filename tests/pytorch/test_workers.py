"""Layers that solve in the workers of a DataLoader, forked or started anew, and in saved checkpoints."""

import io
import os
import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import backsolve.client as client_module
from backsolve import Client
from backsolve.torch import LinearSolve
from support.datasets import ITEMS, PATTERN, SolvedItems
from support.fresh import new_seed
from support.servers import ServerProcess
from support.tensors import close, rhs, values_on

WORKERS = 2


def _loaded(items: SolvedItems, start: str) -> torch.Tensor:
    """Every item, and proof that workers have made it."""
    loader = DataLoader(
        items, batch_size=1, num_workers=WORKERS, multiprocessing_context=start, timeout=120, persistent_workers=True
    )
    rounds = [torch.cat(list(loader)) for _ in range(2)]
    made_by = {int(pid) for each in rounds for pid in each[:, 0]}
    assert len(made_by) == WORKERS
    assert os.getpid() not in made_by
    assert torch.equal(rounds[0], rounds[1])
    return rounds[0][:, 1:]


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("own", [True, False], ids=["own client", "process-wide client"])
def test_workers_solve_on_one_server(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, start: str, own: bool
) -> None:
    """Used in the parent first, then pickled or forked: all workers meet the factor that the parent had made."""
    monkeypatch.setenv("BACKSOLVE_URL", server.http_url)
    monkeypatch.setattr(client_module, "_default", client_module._Default())
    with Client(server.grpc_url if own else server.http_url) as client:
        layer = LinearSolve(PATTERN, **({"client": client} if own else {}))  # type: ignore[arg-type]
        items = SolvedItems(new_seed(), layer, sparse=True)
        here = torch.stack([items[index] for index in range(ITEMS)])[:, 1:]
        before = client.stats()
        close(_loaded(items, start), here, rtol=0, atol=0)
        after = client.stats()
        spent = {name: after[name] - before[name] for name in ("factorizations", "solves", "adjoint_solves")}
        assert spent == {"factorizations": 0, "solves": 2 * ITEMS, "adjoint_solves": 2 * ITEMS}
        if not own:
            client_module.default_client().close()


def test_a_layer_with_a_client_in_a_pickle_and_in_a_checkpoint(server: ServerProcess) -> None:
    """It solves on the same server again; two layers that share a client share one again."""
    values, b = values_on(PATTERN, 281_905_736), rhs(640_937_215, (6,))
    with Client(server.http_url, timeout=31.0) as client:
        two = torch.nn.ModuleList([LinearSolve(PATTERN, client=client), LinearSolve(PATTERN, trans="T", client=client)])
        expected = [layer(values, b) for layer in two]
    stored = io.BytesIO()
    torch.save(two, stored)
    stored.seek(0)
    for again in (pickle.loads(pickle.dumps(two)), torch.load(stored, weights_only=False)):
        opened: Any = again[0].options["client"]
        assert again[1].options["client"] is opened
        with opened:
            for layer, x in zip(again, expected, strict=True):
                close(layer(values, b), x, rtol=0, atol=0)
            assert opened.stats()["uploads"] == 0
