"""`torch.compile` where sizes change from call to call: one graph for all of them, and errors with their texts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend

from backsolve import Client
from backsolve.errors import InvalidShapeError, NonfiniteInputError, NotConvergedError, SingularMatrixError
from backsolve.torch import lstsq, solve, spsolve
from support.tensors import close, dense, reference, rhs, scattered, sparse_pattern, values_on

# The compiler itself uses deprecated modules and warns about itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PATTERN = sparse_pattern(219_640_385, 5)

Case = tuple[Tensor, Tensor]


class Compilations:
    """A backend of the compiler that counts the graphs it is given."""

    def __init__(self) -> None:
        self.count = 0
        self._backend = lookup_backend("aot_eager")

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return self._backend(graph, inputs)


@pytest.fixture
def compilations() -> Iterator[Compilations]:
    torch.compiler.reset()
    yield Compilations()
    torch.compiler.reset()


def _square(*sizes: tuple[tuple[int, ...], int, tuple[int, ...]]) -> list[Case]:
    """Systems by batch, n and columns; the sizes of a call all differ, or the compiler takes two for one."""
    return [
        (dense(501_873_294 + n, batch, n), rhs(86_205_917 + n, (*batch, n, *columns))) for batch, n, columns in sizes
    ]


def _run(f: Callable[[Tensor, Tensor], Tensor], truth: Callable[[Tensor, Tensor], Tensor], cases: list[Case]) -> None:
    """Values and gradients of every case."""
    for A, b in cases:
        A.requires_grad_()
        b.requires_grad_()
        x, expected = f(A, b), truth(A, b)
        close(x, expected)
        ours, theirs = (torch.autograd.grad((y**3).sum(), (A, b)) for y in (x, expected))
        for mine, wanted in zip(ours, theirs, strict=True):
            close(mine, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "cases",
    [
        _square(((), 4, ()), ((), 7, ()), ((), 5, ()), ((), 9, ())),
        _square(((2,), 5, (3,)), ((4,), 7, (3,)), ((3,), 6, (5,)), ((7,), 4, (2,))),
        _square(((2, 3), 5, ()), ((4, 2), 6, ()), ((5, 7), 4, ())),
    ],
    ids=["n", "batch, n and columns", "two batches"],
)
def test_one_graph_for_all_sizes(embedded: Client, compilations: Compilations, cases: list[Case]) -> None:
    f = torch.compile(lambda A, b: solve(A, b, client=embedded), fullgraph=True, dynamic=True, backend=compilations)
    _run(f, reference, cases)
    assert compilations.count == 1


def test_one_graph_more_where_the_compiler_finds_out_by_itself(embedded: Client, compilations: Compilations) -> None:
    """Without `dynamic` the first graph is of the first sizes, and the second of all."""
    f = torch.compile(lambda A, b: solve(A, b, client=embedded), fullgraph=True, backend=compilations)
    _run(f, reference, _square(((2,), 5, (3,)), ((4,), 7, (6,)), ((3,), 6, (5,)), ((7,), 4, (2,))))
    assert compilations.count == 2


def test_marked_dimensions(embedded: Client, compilations: Compilations) -> None:
    """`mark_dynamic` raises where the code behind it ties the dimension to one size."""
    f = torch.compile(lambda A, b: solve(A, b, client=embedded), fullgraph=True, backend=compilations)
    cases = _square(((2,), 5, (3,)), ((4,), 7, (3,)), ((3,), 6, (3,)))
    for A, b in cases:
        for dim in (0, 1, 2):
            torch._dynamo.mark_dynamic(A, dim)
        for dim in (0, 1):
            torch._dynamo.mark_dynamic(b, dim)
    _run(f, reference, cases)
    assert compilations.count == 1


def test_a_pattern_with_other_batches_and_columns(embedded: Client, compilations: Compilations) -> None:
    f = torch.compile(
        lambda v, b: spsolve(v, PATTERN, b, client=embedded), fullgraph=True, dynamic=True, backend=compilations
    )
    cases = [
        (values_on(PATTERN, 730_156_842, (batch,)), rhs(47_120_963, (batch, 5, columns)))
        for batch, columns in ((2, 3), (4, 7), (3, 2), (8, 6))
    ]
    _run(f, lambda v, b: reference(scattered(v, PATTERN), b), cases)
    assert compilations.count == 1


def test_least_squares_of_other_shapes(embedded: Client, compilations: Compilations) -> None:
    f = torch.compile(lambda A, b: lstsq(A, b, client=embedded), fullgraph=True, dynamic=True, backend=compilations)
    cases = [
        (rhs(318_402_756 + n, (batch, m, n)), rhs(905_716_238, (batch, m, 2)))
        for batch, m, n in ((3, 8, 4), (5, 11, 7), (4, 9, 6))
    ]
    _run(f, lambda A, b: torch.linalg.pinv(A) @ b, cases)
    assert compilations.count == 1


def test_mapped_solves_of_other_sizes(embedded: Client, compilations: Compilations) -> None:
    mapped = torch.vmap(lambda A, b: solve(A, b, client=embedded))
    f = torch.compile(mapped, fullgraph=True, dynamic=True, backend=compilations)
    _run(f, reference, _square(((2,), 5, (3,)), ((4,), 7, (3,)), ((3,), 6, (5,))))
    assert compilations.count == 1


# -- errors --------------------------------------------------------------------------------


def _text(f: Callable[[], Any], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        f()
    return str(caught.value)


def _singular() -> Tensor:
    return torch.diag(torch.tensor([3.0, 0.0, 2.0, 5.0], dtype=torch.float64))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_what_the_server_says_arrives(client: Client, compilations: Compilations, dynamic: bool) -> None:
    """In the forward, eager and compiled: the same class, and the same text."""
    options: Any = {"client": client}
    b = rhs(672_043_918, (4,))
    f = torch.compile(lambda A, b: solve(A, b, **options), fullgraph=True, dynamic=dynamic, backend=compilations)
    eager = _text(lambda: solve(_singular(), b, **options), SingularMatrixError)
    assert "singular" in eager
    assert _text(lambda: f(_singular(), b), SingularMatrixError) == eager
    fine = dense(294_617_835, (), 4)
    close(f(fine, b), reference(fine, b))  # the graph is as good as before
    assert compilations.count == 1


def test_what_the_server_says_to_a_backward_arrives(client: Client, compilations: Compilations) -> None:
    A, b = dense(150_729_463, (), 4).requires_grad_(), rhs(41_908_572, (4,))
    f = torch.compile(lambda A, b: solve(A, b, client=client), fullgraph=True, dynamic=True, backend=compilations)
    texts = [
        _text(lambda g=g: g(A, b).backward(b * float("inf")), NonfiniteInputError)
        for g in (lambda A, b: solve(A, b, client=client), f)
    ]
    assert texts[0] == texts[1]
    assert "infinity" in texts[0]


def test_an_answer_that_misses_its_tolerance(client: Client, compilations: Compilations) -> None:
    noise = dense(803_451_279)
    spd, b = noise @ noise.mT + (noise @ noise.mT).mT, rhs(239_871_504, (6,))

    def eager(A: Tensor, b: Tensor) -> Tensor:
        return solve(A, b, method="cg", rtol=1e-13, maxiter=1, client=client)

    f = torch.compile(eager, fullgraph=True, dynamic=True, backend=compilations)
    texts = [_text(lambda g=g: g(spd, b), NotConvergedError) for g in (eager, f)]
    assert texts[0] == texts[1]
    assert "cg" in texts[0]


def test_shapes_that_do_not_fit_are_refused_while_tracing(embedded: Client, compilations: Compilations) -> None:
    f = torch.compile(lambda A, b: solve(A, b, client=embedded), fullgraph=True, dynamic=True, backend=compilations)
    with pytest.raises((InvalidShapeError, torch._dynamo.exc.Unsupported), match=r"square|InvalidShapeError"):
        f(rhs(559_016_342, (4, 6)), rhs(12_784_903, (4,)))
