"""Arrays of other libraries in and out of the client: without a copy, and without a way to what is cached."""

import itertools
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

from backsolve import Client, LowRankPlusDiagonal, Pattern
from backsolve._transports.base import JvpCall, PutCall, SolveCall, SolveReply, Transport, VjpCall, VjpReply
from backsolve.errors import InvalidDtypeError, InvalidPatternError, NotSupportedError
from backsolve.types import Holding, MatrixRef, ServerInfo
from backsolve_service.embedded import EmbeddedTransport
from support.tensors import dense, rhs

_seeds = itertools.count(562_097_814)


def fresh() -> Tensor:
    """A matrix that nothing in this process has solved with: its engine and cache are shared by all that is open."""
    return dense(next(_seeds))


A, B = dense(562_097_813), rhs(391_740_268, (6, 3))
X = torch.linalg.solve(A, B).numpy()


@final
class Foreign:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, held: Any, device: tuple[int, int] = (1, 0)) -> None:
        self._held, self._device = held, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **options: Any) -> Any:
        return self._held.__dlpack__(**options)


@final
class Watched(Transport):
    """The embedded engine, and the addresses of what it was handed."""

    def __init__(self) -> None:
        self._engine = EmbeddedTransport()
        self.met: set[int] = set()

    def _meet(self, *arrays: Any) -> None:
        self.met |= {array.ctypes.data for array in arrays if array is not None}

    def solve(self, call: SolveCall, timeout: float | None) -> SolveReply:
        self._meet(call.rhs, call.x0, call.values)
        return self._engine.solve(call, timeout)

    def vjp(self, call: VjpCall, timeout: float | None) -> VjpReply:
        self._meet(call.cotangent, call.x)
        return self._engine.vjp(call, timeout)

    def jvp(self, call: JvpCall, timeout: float | None) -> SolveReply:
        self._meet(call.b_tangent, call.x)
        return self._engine.jvp(call, timeout)

    def put(self, call: PutCall, timeout: float | None) -> MatrixRef:
        self._meet(call.matrix.values)
        return self._engine.put(call, timeout)

    def find(self, refs: Sequence[MatrixRef], timeout: float | None) -> list[Holding]:
        return self._engine.find(refs, timeout)

    def release(self, ref: MatrixRef, timeout: float | None) -> None:
        self._engine.release(ref, timeout)

    def info(self, timeout: float | None) -> ServerInfo:
        return self._engine.info(timeout)

    def stats(self, timeout: float | None) -> Mapping[str, float]:
        return self._engine.stats(timeout)

    def close(self) -> None:
        self._engine.close()


@pytest.fixture
def watched() -> Iterator[tuple[Client, Watched]]:
    transport = Watched()
    with Client(transport=transport) as client:
        yield client, transport


def _read_only(tensor: Tensor) -> Any:
    array = tensor.clone().numpy()
    array.flags.writeable = False
    return array


MADE: dict[str, Callable[[Tensor], Any]] = {
    "torch": torch.clone,
    "DLPack alone": lambda t: Foreign(t.clone()),
    "NumPy": lambda t: t.clone().numpy(),
    "read-only": _read_only,
}

each_library = pytest.mark.parametrize("library", MADE)


def _address(array: Any) -> int:
    if isinstance(array, Foreign):
        array = array._held
    return int(array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data)


# -- in ------------------------------------------------------------------------------------


@each_library
def test_the_engine_reads_the_callers_memory(watched: tuple[Client, Watched], library: str) -> None:
    """A once, for the copy that the cache owns; b, x and cotangents always."""
    client, transport = watched
    made, matrix = MADE[library], fresh()
    a, b, cotangent, x0 = made(matrix), made(B), made(B + 1), made(B + 2)
    solution = client.solve(a, b)
    np.testing.assert_allclose(solution.x, torch.linalg.solve(matrix, B).numpy(), rtol=1e-10)
    assert {_address(a), _address(b)} <= transport.met

    gradients = client.vjp(a, solution.x, cotangent)
    np.testing.assert_allclose(gradients.b, torch.linalg.solve(matrix.mT, B + 1).numpy(), rtol=1e-10)
    assert _address(cotangent) in transport.met
    client.jvp(a, solution.x, b_tangent=x0)
    assert _address(x0) in transport.met


@each_library
def test_a_first_iterate_is_read_where_it_lies(watched: tuple[Client, Watched], library: str) -> None:
    client, transport = watched
    x0 = MADE[library](torch.tensor(X).contiguous())
    client.solve(MADE[library](A), MADE[library](B), x0=x0, method="gmres")
    assert _address(x0) in transport.met


@each_library
@pytest.mark.parametrize("method", ["lu", "cg"])
def test_no_library_costs_more_memory_than_numpy(embedded: Client, library: str, method: str) -> None:
    """The peak of NumPy's arrays in a solve on a cached factor, to a tenth of the right-hand side."""
    noise = dense(873_015_426, (), 40)
    spd, b = noise @ noise.mT + (noise @ noise.mT).mT, rhs(250_738_461, (40, 4000))
    if method == "cg":
        spd = torch.diag(torch.arange(1.0, 41.0).double())

    def peak(make: Callable[[Tensor], Any]) -> int:
        given = make(spd), make(b)
        embedded.solve(*given, method=method)
        embedded.solve(*given, method=method)
        tracemalloc.start()
        try:
            embedded.solve(*given, method=method)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(MADE[library]) < peak(MADE["NumPy"]) + b.numpy().nbytes / 10


def test_jax_arrays_are_read_where_they_lie() -> None:
    """In a process of its own: once JAX is loaded, Python warns of every fork."""
    script = """
import warnings
warnings.simplefilter("error")
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
from backsolve import Client

a, b = jnp.asarray(np.diag([2.0, 4.0, 8.0]) + 1), jnp.asarray(np.ones((3, 5)))
with Client("embedded") as client:
    solution = client.solve(a, b)
    np.testing.assert_allclose(solution.x, np.linalg.solve(np.asarray(a), np.asarray(b)), rtol=1e-12)
    back = jax.dlpack.from_dlpack(solution.x)
    assert isinstance(back, jax.Array) and back.tolist() == solution.x.tolist()
    assert client.solve(a + 0, b).stats.factor_hit
    from backsolve._dlpack import read
    assert read(b, "b").ctypes.data == b.unsafe_buffer_pointer()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_single_precision_and_complex_numbers_stay(embedded: Client) -> None:
    for dtype in (torch.float32, torch.complex64, torch.complex128):
        solution = embedded.solve(Foreign(A.to(dtype)), Foreign(B.to(dtype)))
        assert torch.from_dlpack(solution.x).dtype is dtype


def test_parameters_and_index_arrays(embedded: Client) -> None:
    """Wherever an array is taken, those of other libraries are."""
    d, U = A[0].abs() + 1, A[:, :2]
    solution = embedded.solve(LowRankPlusDiagonal(Foreign(d), Foreign(U)), Foreign(B))
    np.testing.assert_allclose(solution.x, torch.linalg.solve(torch.diag(d) + U @ U.mT, B).numpy(), rtol=1e-9)
    pattern = Pattern(Foreign(torch.tensor([0, 1, 2])), torch.tensor([0, 1]), (2, 2))
    assert pattern.indptr.tolist() == [0, 1, 2]


def test_a_view_that_means_other_numbers_than_it_stores(embedded: Client) -> None:
    """PyTorch exports the stored numbers of a negated view; they are not what the tensor says."""
    negated = (A + 1j * A).conj().imag
    assert negated.is_neg()
    with pytest.raises(InvalidDtypeError, match="no array of numbers"):
        embedded.solve(negated, B)
    np.testing.assert_allclose(embedded.solve(negated.resolve_neg(), B).x, -X, rtol=1e-10)


# -- whose memory it is --------------------------------------------------------------------


@pytest.mark.parametrize("library", ["torch", "DLPack alone", "NumPy"])
def test_writing_to_a_matrix_reaches_nothing_that_is_cached(embedded: Client, library: str) -> None:
    """The engine's own copy stays what its digest says; the new numbers are another matrix."""
    tensor = fresh()
    again, x = tensor.clone(), torch.linalg.solve(tensor, B).numpy()
    a = {"torch": tensor, "DLPack alone": Foreign(tensor), "NumPy": tensor.numpy()}[library]
    embedded.solve(a, B)  # before the handle is made, which has a copy of its own
    held = embedded.factorized(a)
    tensor.mul_(2.0)
    doubled = embedded.solve(a, B)
    np.testing.assert_allclose(doubled.x, x / 2, rtol=1e-10)
    assert not doubled.stats.factor_hit
    first = embedded.solve(again, B)
    np.testing.assert_allclose(first.x, x, rtol=1e-10)
    assert first.stats.factor_hit
    assert first.stats.relative_residual < 1e-12
    np.testing.assert_allclose(held.solve(B.numpy()), x, rtol=1e-10)


def test_one_buffer_for_the_matrices_of_many_steps(embedded: Client) -> None:
    """Values that go with the call are kept as they were then, each under its own digest."""
    buffer = torch.empty_like(A)
    for step in range(1, 9):
        buffer.copy_(A * step)
        np.testing.assert_allclose(embedded.solve(buffer, B).x, X / step, rtol=1e-10)
    for step in range(1, 9):
        again = embedded.solve(A * step, B)
        np.testing.assert_allclose(again.x, X / step, rtol=1e-10)
        assert again.stats.factor_hit
        assert again.stats.relative_residual < 1e-12


@pytest.mark.parametrize(
    "method", ["lu", "cholesky", "ldl", "qr", "cg", "fcg", "minres", "bicgstab", "gmres", "fgmres", "lsmr"]
)
def test_the_engine_writes_to_no_memory_of_the_caller(embedded: Client, method: str) -> None:
    """Nor does an answer lie in it, or in anything that a later answer depends on."""
    noise = dense(406_281_957)
    a, b, x0 = noise @ noise.mT + (noise @ noise.mT).mT, B.clone(), B.clone()
    before = [t.clone() for t in (a, b, x0)]
    options: Any = {"x0": x0} if method in ("cg", "fcg", "minres", "bicgstab", "gmres", "fgmres", "lsmr") else {}
    solution = embedded.solve(a, b, method=method, rtol=None, **options)
    gradients = embedded.vjp(a, solution.x, b, method=method)
    kept = solution.x.copy()
    answers = [solution.x, gradients.b, gradients.values]
    for given, old in zip((a, b, x0), before, strict=True):
        assert torch.equal(given, old)
        assert not any(np.shares_memory(given.numpy(), answer) for answer in answers)
    for answer in answers:
        answer.fill(np.nan)
    assert np.array_equal(embedded.solve(a, b, method=method, **options).x, kept)


# -- out -----------------------------------------------------------------------------------


def test_answers_are_exported_without_a_copy(client: Client) -> None:
    """Every array of a reply: writable, in C order, on the host."""
    solution = client.solve(A, B)
    gradients = client.vjp(A, solution.x, B)
    tangent = client.jvp(A, solution.x, b_tangent=B)
    fitted = client.lstsq(A, B)
    for array in (solution.x, gradients.b, gradients.values, tangent.x, fitted.x, client.factorized(A).solve(B)):
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == array.ctypes.data
        assert tensor.is_contiguous()
        tensor.add_(1.0)
        assert torch.equal(tensor, torch.tensor(array))


# -- what cannot be read -------------------------------------------------------------------


@pytest.mark.parametrize(("device", "name"), [((2, 1), "CUDA device 1"), ((10, 0), "ROCm device 0"), ((99, 3), "3")])
@pytest.mark.parametrize("argument", [0, 1])
def test_arrays_on_a_device_are_refused(embedded: Client, device: tuple[int, int], name: str, argument: int) -> None:
    given: list[Any] = [A, B]
    given[argument] = Foreign(given[argument], device)
    with pytest.raises(NotSupportedError, match=rf"^{'Ab'[argument]} lies on .*{name}, .*to the host"):
        embedded.solve(*given)


def test_index_arrays_on_a_device_are_refused() -> None:
    with pytest.raises(NotSupportedError, match="indices lies on CUDA device 0"):
        Pattern([0, 1], Foreign(torch.tensor([0]), (2, 0)), (1, 1))


def test_types_that_cannot_be_read_or_solved_in(embedded: Client) -> None:
    with pytest.raises(InvalidDtypeError, match="DLPack"):
        embedded.solve(Foreign(A.bfloat16()), B)
    with pytest.raises(InvalidDtypeError, match="float16"):
        embedded.solve(Foreign(A.half()), B)
    with pytest.raises(InvalidDtypeError, match="no array of numbers"):
        embedded.solve(A.bfloat16(), B)
    with pytest.raises(InvalidDtypeError, match=r"backsolve\.torch"):
        embedded.solve(A.clone().requires_grad_(), B)
    with pytest.raises(InvalidPatternError, match="integers"):
        Pattern(Foreign(torch.tensor([0.0, 1.0])), [0], (1, 1))
