"""What a gradient costs: factorizations, solves, memory; and that it works in forked workers."""

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

import backsolve.client as client_module
from backsolve import Client, Pattern
from backsolve.torch import _rules, solve, spsolve
from support.fresh import new_rng
from support.servers import ServerProcess
from support.systems import convection, laplacian
from support.tensors import close, dense, reference, rhs, sparse_pattern, values_on

TRANSPORTS = ("embedded", "http", "grpc")
COUNTED = ("factorizations", "solves", "adjoint_solves", "tangent_solves")


def _counted(client: Client, action: Callable[[], Any]) -> dict[str, float]:
    before = client.stats()
    action()
    after = client.stats()
    return {name: after[name] - before[name] for name in COUNTED}


def _fresh_values(pattern: Pattern) -> Tensor:
    """Numbers that no cache has met, whatever ran before on the same server."""
    noise = torch.as_tensor(new_rng().standard_normal(pattern.nnz))
    return (values_on(pattern, 403_918_275) + 1e-3 * noise).requires_grad_()


def test_one_factorization_and_one_solve_for_each_derivative(client: Client) -> None:
    """R4: 1 forward, 1 gradient, 2 Hessian-vector product; the factor is built once."""
    pattern = sparse_pattern(286_401_937, 12)
    values, b, v = _fresh_values(pattern), rhs(551_098_743, (12,)), rhs(894_217_306, (pattern.nnz,))
    kept: list[Tensor] = []

    def forward() -> None:
        kept.append(spsolve(values, pattern, b, client=client))

    def gradient() -> None:
        kept.extend(torch.autograd.grad((kept[0] ** 3).sum(), values, create_graph=True))

    def product() -> None:
        kept.extend(torch.autograd.grad((kept[1] * v).sum(), values))

    counts = [_counted(client, action) for action in (forward, gradient, product)]
    assert [count["factorizations"] for count in counts] == [1, 0, 0]
    solves = [count["solves"] + count["adjoint_solves"] for count in counts]
    assert solves == [1, 1, 2]


def test_tangent_costs_one_solve(client: Client) -> None:
    pattern = sparse_pattern(137_420_985, 12)
    values, b, v = _fresh_values(pattern).detach(), rhs(651_907_238, (12,)), rhs(24_178_360, (pattern.nnz,))
    count = _counted(client, lambda: torch.func.jvp(lambda t: spsolve(t, pattern, b, client=client), (values,), (v,)))
    assert count == {"factorizations": 1, "solves": 1, "adjoint_solves": 0, "tangent_solves": 1}


# PyTorch loads its own forward-mode rules through torch.jit.
test_tangent_costs_one_solve = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")(
    test_tangent_costs_one_solve
)


@pytest.mark.parametrize("columns", [(), (4,)], ids=["vector", "columns"])
def test_memory_of_a_backward(embedded: Client, columns: tuple[int, ...]) -> None:
    """R2: on n = 1e5 with nnz = 5e5 the gradient's own arrays stay within a few vectors."""
    m = 316
    a = laplacian(m)
    pattern = Pattern.from_csr(a)
    values = torch.from_numpy(a.data).requires_grad_()
    b = torch.ones(pattern.n, *columns, dtype=torch.float64)
    x = spsolve(values, pattern, b, method="cg", rtol=1e-1, maxiter=2000, on_failure="warn", client=embedded)
    peaks = _tensor_peak(lambda: x.sum().backward())
    assert values.grad is not None
    assert values.grad.shape == values.shape
    assert peaks < 20 * (pattern.n * max(1, *columns, 1) + pattern.nnz) * 8


def _tensor_peak(action: Callable[[], Any]) -> int:
    """Most bytes of host tensors and arrays alive at once beyond those before, while `action` runs."""
    gc.collect()
    tracemalloc.start()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        action()
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak > 0
    return peak + arrays


def test_values_are_not_copied_for_the_backward(embedded: Client) -> None:
    """What is kept between forward and backward is the caller's own storage and x."""
    pattern = sparse_pattern(905_316_248, 40)
    values, b = values_on(pattern, 70_981_325).requires_grad_(), rhs(439_105_827, (40,))
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x = spsolve(values, pattern, b, client=embedded)
    assert sorted(tensor.data_ptr() for tensor in saved) == sorted([values.data_ptr(), x.data_ptr()])


def test_a_finished_graph_is_freed_at_once(embedded: Client) -> None:
    """No reference cycle holds the matrix until the garbage collector comes."""
    a = dense(184_920_573).requires_grad_()
    gc.disable()
    try:
        x = solve(a * 1.0, rhs(268_394_107, (6,)), client=embedded)
        freed: list[bool] = []
        weakref.finalize(x.grad_fn, freed.append, True)
        x.sum().backward()
        assert not freed
        del x
        assert freed
    finally:
        gc.enable()


def test_gradient_of_a_convection_matrix(client: Client) -> None:
    """The gradient on the pattern equals the dense one there (R2, n = 196)."""
    a = convection(14)
    pattern = Pattern.from_csr(a)
    values = torch.from_numpy(a.data).requires_grad_()
    b = rhs(810_936_472, (pattern.n, 3))
    (ours,) = torch.autograd.grad((spsolve(values, pattern, b, client=client) ** 3).sum(), values)
    full = torch.from_numpy(a.toarray()).requires_grad_()
    (truth,) = torch.autograd.grad((reference(full, b) ** 3).sum(), full)
    rows, columns = torch.tensor(pattern.rows).long(), torch.tensor(pattern.indices).long()
    close(ours, truth[rows, columns], rtol=1e-11)


class _Systems(Dataset[Tensor]):
    """Each item is the answer to a system solved in the worker, by the process-wide client."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        a = dense(640_218_375 + index).requires_grad_()
        x = solve(a, rhs(58_130_274, (6,)))
        (of_a,) = torch.autograd.grad(x.sum(), a)
        return torch.cat([x.detach(), of_a.flatten()])


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("way", TRANSPORTS)
def test_data_loader_workers_after_fork(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The parent's client is in use before the workers are forked."""
    monkeypatch.delenv("BACKSOLVE_URL", raising=False)
    if way != "embedded":
        server: ServerProcess = request.getfixturevalue("server")
        monkeypatch.setenv("BACKSOLVE_URL", server.http_url if way == "http" else server.grpc_url)
    # The process-wide client of the other tests has been opened without that variable.
    monkeypatch.setattr(client_module, "_default", client_module._Default())
    systems = _Systems()
    with client_module.default_client() as process_wide:
        here = torch.stack([systems[index] for index in range(len(systems))])
        before = process_wide.stats()["solves"]
        loader = DataLoader(systems, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
        close(torch.cat(list(loader)), here)
        # A worker of its own engine leaves the parent's counters alone; a server counts everybody.
        assert process_wide.stats()["solves"] - before == (0 if way == "embedded" else len(systems))


def test_a_first_iterate_decides_the_method_of_the_backward_too(embedded: Client) -> None:
    """Only the forward has x0; the adjoint must meet the forward's factor all the same."""
    half = dense(911_408_236)
    a = (half @ half.mT + torch.eye(6, dtype=half.dtype)).requires_grad_()
    b = rhs(340_177_925, (6,))
    before = embedded.stats()["factorizations"]
    seen: list[str] = []
    x = solve(a, b, x0=b, client=embedded, observe=lambda phase, certificate: seen.append(certificate.method))
    x.sum().backward()
    assert seen == ["cg", "cg"]
    assert embedded.stats()["factorizations"] - before == 1


class _Products(TorchDispatchMode):
    """How many numbers each multiplication makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mul.Tensor:
            self.sizes.append(found.numel())
        return found


def test_a_wide_block_of_columns_is_taken_in_pieces(embedded: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """All products at once would take as much memory as columns times entries; the pieces make the same."""
    pattern = sparse_pattern(618_934_275, 9)
    values, b, v = values_on(pattern, 427_116_083), rhs(936_580_142, (9, 7)), rhs(240_871_569, (pattern.nnz,))

    def derivatives() -> list[Tensor]:
        given = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(
            (spsolve(given, pattern, b, client=embedded) ** 3).sum(), given, create_graph=True
        )
        return [gradient.detach(), *torch.autograd.grad(gradient @ v, given)]

    whole = derivatives()
    monkeypatch.setattr(_rules, "_BLOCK", 35)
    monkeypatch.setattr(_rules, "_CACHED", 35)
    for singly, most in ((7, pattern.nnz), (6, 35)):
        monkeypatch.setattr(_rules, "_SINGLY", singly)
        for one, other in zip(derivatives(), whole, strict=True):
            close(one, other)
        with _Products() as products:
            _rules.product(pattern, values, b, transposed=True)
        assert len(products.sizes) > 1
        assert max(products.sizes) <= most
    with _Products() as products:
        _rules.outer(pattern, b, b)
    assert len(products.sizes) > 1
    assert max(products.sizes) <= 35
