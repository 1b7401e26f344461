"""Training on several ranks and in several threads: one server, one factor, the gradients of one process."""

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DataParallel

import backsolve.client as client_module
from backsolve import Client
from backsolve.torch import LinearSolve, spsolve
from support import ranks
from support.fresh import new_seed
from support.servers import ServerProcess
from support.tensors import close, dense, reference, rhs, sparse_pattern, values_on

COUNTED = ("factorizations", "solves", "adjoint_solves")

RANKS = 2


def _seed() -> int:
    """Of matrices that the server has not met, whatever ran before on it."""
    return new_seed()


def test_ranks_share_one_factor(server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with half of the samples each: the server factorizes once a step, for both."""
    seed, url = _seed(), server.http_url
    with Client(url) as watching:
        before = watching.stats()
        _start_ranks(tmp_path, url, seed)
        after = watching.stats()
    spent = {name: after[name] - before[name] for name in COUNTED}
    assert spent == {
        "factorizations": ranks.STEPS,
        "solves": RANKS * ranks.STEPS,
        "adjoint_solves": RANKS * ranks.STEPS,
    }
    found: list[Any] = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(RANKS)]
    assert len({os.getpid(), *(each["pid"] for each in found)}) == RANKS + 1

    monkeypatch.delenv("BACKSOLVE_URL", raising=False)
    monkeypatch.setattr(client_module, "_default", client_module._Default())
    with client_module.default_client():
        alone = ranks.train(ranks.Model(seed), ranks.data(seed))
    for rank in found:
        assert len(rank["steps"]) == len(alone) == ranks.STEPS
        for mine, expected in zip(rank["steps"], alone, strict=True):
            assert mine.keys() == expected.keys() == {"values", "mixing.weight", "mixing.bias"}
            for name, gradient in expected.items():
                close(mine[name], gradient, rtol=1e-10, atol=1e-13)


def _start_ranks(folder: Path, url: str, seed: int) -> None:
    spawn = get_context("spawn")
    processes = [
        spawn.Process(target=ranks.run_rank, args=(rank, RANKS, str(folder), url, seed)) for rank in range(RANKS)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def test_replicas_in_threads(client: Client) -> None:
    """What DataParallel does with devices: one module in a thread for each, gradients summed into the same leaf."""
    pattern = sparse_pattern(340_918_527, 12)
    values = values_on(pattern, _seed()).requires_grad_()
    layer = LinearSolve(pattern, client=client)
    columns = rhs(815_602_374, (12, 8))

    def replica(b: Tensor) -> Tensor:
        loss = (layer(values, b) ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, values)
        return gradient

    before = client.stats()
    with ThreadPoolExecutor(4) as threads:
        total = torch.stack(list(threads.map(replica, columns.chunk(4, dim=1)))).sum(0)
    after = client.stats()
    assert {name: after[name] - before[name] for name in COUNTED} == {
        "factorizations": 1,
        "solves": 4,
        "adjoint_solves": 4,
    }
    (expected,) = torch.autograd.grad((spsolve(values, pattern, columns, client=client) ** 2).sum(), values)
    close(total, expected)


def test_one_backward_through_forwards_of_several_threads(embedded: Client) -> None:
    """The autograd graph of a forward in another thread is as good as any."""
    A = dense(_seed()).requires_grad_()
    given = rhs(604_718_239, (4, 6))
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda b: LinearSolve(client=embedded)(A, b), given))
    (gradient,) = torch.autograd.grad(torch.stack(answers).pow(3).sum(), A)
    truth = torch.stack([reference(A, b) for b in given]).pow(3).sum()
    close(gradient, torch.autograd.grad(truth, A)[0])


def test_data_parallel_without_devices(embedded: Client) -> None:
    """On a machine without them it is the module itself."""
    A, b = dense(_seed(), (4,)).requires_grad_(), rhs(72_905_183, (4, 6))
    layer = DataParallel(LinearSolve(client=embedded))
    x = layer(A, b)
    close(x, reference(A, b))
    close(torch.autograd.grad(x.sum(), A)[0], torch.autograd.grad(reference(A, b).sum(), A)[0])
