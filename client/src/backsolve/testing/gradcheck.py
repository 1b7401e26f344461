"""Gradients against central differences, and reverse mode against forward.

For L(inputs) = Re⟨g, f(inputs)⟩ with random cotangents g, the gradient Jᵀ g is compared with central differences
of L along random directions of each input, ⟨g, J v⟩ = ⟨Jᵀ g, v⟩, and entry by entry. Along a direction any wrong entry
shows; single entries tell which. A step too large has truncation in it, one too small rounding (of an iterative
solve: its tolerance), so several are tried, and the one whose quotient moves least from its neighbour's counts.
It is chosen without a look at the gradient, which could otherwise pass by chance.

Source: Griewank and Walther, "Evaluating derivatives", 2nd ed., chapter 3 (the dot-product test); for the step,
Gill, Murray, Saunders and Wright, "Computing forward-difference intervals for numerical optimization", 1983.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, final

import numpy as np

from ..errors import InvalidOptionError
from ..types import Array
from .frameworks import Pipeline, checked, pipeline
from .hints import hints
from .report import Entry, GradcheckError, GradcheckReport, Index

_STEPS: Final = {8: (1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 4: (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)}
_RTOL: Final = {8: 1e-6, 4: 3e-3}
"""By the bytes of a real number."""

_DIRECTIONS: Final = 2


def gradcheck(
    f: Callable[..., Any],
    inputs: Any,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    steps: Sequence[float] | None = None,
    entries: int = 16,
    forward: bool = False,
    seed: int = 748_120_353,
    raise_error: bool = True,
) -> GradcheckReport:
    """Check the gradient of a pipeline.

    Costs, for each input, `4 len(steps)` evaluations of f along directions and `2 len(steps)` for each entry
    (twice that for complex ones). f must give the same for the same inputs.

    Args:
        f: called with as many arguments as there are inputs. Of tensors of PyTorch, JAX or TensorFlow it returns one
            of them, or a tuple; of NumPy arrays `(value, gradient)`, or `(value, (gradient, ...))` for several
            inputs, complex gradients such that dL = Re(conj(gradient) dz), as `Client.vjp` has them.
        inputs: one, or a tuple; float32 to complex128.
        rtol: what an error may be, relative to the largest entry of the input's gradient; by default 1e-6, in
            single precision 3e-3.
        atol: what it may be besides, absolute.
        steps: of the differences, relative to the input's root mean square, or to 1 where that is smaller.
        entries: how many entries of each input are looked at one by one; of more a random choice.
        forward: also compare the framework's forward mode with its reverse mode, exact to rounding.
        seed: of directions, cotangents and chosen entries.
        raise_error: raise if something is wrong; otherwise look at `ok`.

    Returns:
        The report; as text it is a summary.

    Raises:
        GradcheckError: an AssertionError with the report, which says which input, which entry, what was got and
            expected, and what may be the cause.
        InvalidShapeError, InvalidDtypeError, InvalidOptionError: nothing can be checked so.
    """
    if entries < 0 or (steps is not None and (len(steps) < 2 or min(steps) <= 0)):
        raise InvalidOptionError("entries must not be negative, and steps at least two positive numbers")
    check = _Check(pipeline(f, inputs), steps, rtol, atol, np.random.default_rng(seed))
    directions = [entry for number in range(len(check.arrays)) for entry in check.along(number)]
    singles = [entry for number in range(len(check.arrays)) for entry in check.singly(number, entries)]
    wrong = [e for e in directions if not check.good(e)]
    for number in {e.input for e in wrong} - {e.input for e in singles if not check.good(e)}:
        singles.append(check.searched(number))
    pushed = check.forward() if forward else None
    allowed = 100 * max(np.finfo(a.dtype).eps for a in check.arrays) ** 0.5
    ok = not wrong and all(check.good(e) for e in singles) and (pushed is None or pushed <= allowed)
    bad = [e for e in (*singles, *directions) if not check.good(e)]
    told = () if ok else hints(check.arrays, check.gradients, bad, {e.input for e in bad if check.kinked(e)})
    if pushed is not None and not pushed <= allowed:
        told = (*told, "forward mode and reverse mode disagree: the rule of one of them is wrong")
    report = GradcheckReport(
        ok, check.pipeline.name, tuple(directions), tuple(singles), pushed, max(check.rtol), told, check.evaluations
    )
    if not ok and raise_error:
        raise GradcheckError(report)
    return report


@final
class _Check:
    """A pipeline with its gradient at one point."""

    def __init__(
        self, given: Pipeline, steps: Sequence[float] | None, rtol: float | None, atol: float, rng: np.random.Generator
    ) -> None:
        self.pipeline, self.atol, self.rng, self.evaluations = given, atol, rng, 1
        self.arrays = given.arrays()
        outputs = checked(given.outputs(self.arrays))
        self.cotangents = [_random(o.shape, o.dtype, rng) for o in outputs]
        if given.name == "numpy":
            self.cotangents = [np.ones_like(o) for o in outputs]
        self.gradients = given.gradients(self.arrays, self.cotangents)
        # The coarsest type that takes part decides what can be seen.
        coarse = min(
            np.finfo(a.dtype).dtype.itemsize for a in (*self.arrays, *(o for o in outputs if o.dtype.kind in "fc"))
        )
        self.steps = tuple(sorted(steps or _STEPS[coarse], reverse=True))
        self.rtol = [_RTOL[coarse] if rtol is None else rtol] * len(self.arrays)
        self.largest = [float(np.abs(g).max(initial=0.0)) for g in self.gradients]

    def good(self, entry: Entry) -> bool:
        """Whether an error is within the tolerance; one that is not a number is not."""
        scale = self._scale(entry)
        return bool(entry.error * scale <= self.rtol[entry.input] * scale + self.atol)

    def along(self, number: int) -> list[Entry]:
        """Random directions in one input."""
        array = self.arrays[number]
        if not array.size:
            return []
        found = []
        for _ in range(_DIRECTIONS):
            v = _random(array.shape, array.dtype, self.rng)
            found.append(self._entry(number, None, v))
        return found

    def singly(self, number: int, most: int) -> list[Entry]:
        """Single entries of one input."""
        array = self.arrays[number]
        chosen = range(array.size)
        if array.size > most:
            chosen = sorted(self.rng.choice(array.size, most, replace=False).tolist())  # type: ignore[assignment]
        return [self._single(number, place) for place in chosen]

    def searched(self, number: int) -> Entry:
        """A wrong entry, by halving the set that a wrong direction is in."""
        places = np.arange(self.arrays[number].size)
        while places.size > 1:
            half = places[: places.size // 2]
            v = np.zeros(self.arrays[number].size, self.arrays[number].dtype)
            v[half] = _random(half.shape, v.dtype, self.rng)
            entry = self._entry(number, None, v.reshape(self.arrays[number].shape))
            places = places[places.size // 2 :] if self.good(entry) else half
        return self._single(number, int(places[0]))

    def kinked(self, entry: Entry) -> bool:
        """Whether the slopes to both sides of an entry differ however near one looks."""
        if entry.index is None:
            return False
        array = self.arrays[entry.input]
        v = np.zeros_like(array)
        v[entry.index] = 1
        size, middle = self._size(entry.input), self._loss(entry.input, v, 0.0)
        gaps = []
        for h in (100 * self.steps[-1] * size, self.steps[-1] * size):
            sides = self._loss(entry.input, v, h) - 2 * middle + self._loss(entry.input, v, -h)
            gaps.append(abs(sides) / h)
        # Where f is smooth the gap shrinks with the step.
        return bool(gaps[1] > 0.3 * gaps[0] and gaps[1] > 0.01 * self._scale(entry))

    def forward(self) -> float | None:
        """Largest relative difference of forward mode and reverse mode over random directions."""
        found = None
        for _ in range(_DIRECTIONS):
            tangents = [_random(a.shape, a.dtype, self.rng) for a in self.arrays]
            pushed = self.pipeline.pushed(self.arrays, tangents)
            if pushed is None:
                raise InvalidOptionError("f of NumPy arrays has no forward mode: leave forward out", option="forward")
            one = sum(float(np.vdot(g, p).real) for g, p in zip(self.cotangents, pushed, strict=True))
            other = sum(float(np.vdot(g, t).real) for g, t in zip(self.gradients, tangents, strict=True))
            size = sum(
                float(np.abs(g).ravel() @ np.abs(p).ravel()) for g, p in zip(self.cotangents, pushed, strict=True)
            )
            gap = float(abs(one - other) / max(size, abs(other), np.finfo(float).tiny))
            found = gap if found is None or not gap <= found else found
        return found

    def _single(self, number: int, place: int) -> Entry:
        array = self.arrays[number]
        index: Index = tuple(int(i) for i in np.unravel_index(place, array.shape))
        v = np.zeros_like(array)
        v[index] = 1
        entry = self._entry(number, index, v)
        if array.dtype.kind != "c":
            return entry
        imaginary = self._entry(number, index, 1j * v)
        got = complex(self.gradients[number][index])
        expected = complex(entry.expected.real, imaginary.expected.real)
        scale = self._scale(entry)
        worse = max(entry, imaginary, key=lambda e: e.noise)
        return Entry(number, index, got, expected, abs(got - expected) / scale, worse.step, worse.noise)

    def _entry(self, number: int, index: Index | None, v: Array) -> Entry:
        got = float(np.vdot(self.gradients[number], v).real)
        expected, step, noise = self._difference(number, v)
        draft = Entry(number, index, got, expected, 0.0, step, noise)
        scale = self._scale(draft)
        return Entry(number, index, got, expected, abs(got - expected) / scale, step, noise / scale)

    def _scale(self, entry: Entry) -> float:
        """What the entry is measured by."""
        many = 1.0 if entry.index is not None else float(self.arrays[entry.input].size) ** 0.5
        return max(self.largest[entry.input] * many, abs(entry.expected), abs(entry.got), np.finfo(float).tiny)

    def _size(self, number: int) -> float:
        return max(float(np.sqrt(np.mean(np.abs(self.arrays[number]) ** 2))), 1.0)

    def _difference(self, number: int, v: Array) -> tuple[float, float, float]:
        """The central difference along v that settled best, its step, and what it moved from its neighbour's."""
        size = self._size(number)
        quotients = [
            (self._loss(number, v, h * size) - self._loss(number, v, -h * size)) / (2 * h * size) for h in self.steps
        ]
        moves = [abs(b - a) for a, b in pairwise(quotients)]
        finite = [m if np.isfinite(m) else np.inf for m in moves]
        best = int(np.argmin(finite))
        # Of the two that agree, the one on the side that is the quieter.
        left = finite[best - 1] if best else np.inf
        right = finite[best + 1] if best + 1 < len(finite) else np.inf
        place = best if left < right else best + 1
        return quotients[place], self.steps[place], moves[best]

    def _loss(self, number: int, v: Array, h: float) -> float:
        self.evaluations += 1
        moved = [a + np.asarray(h * v).astype(a.dtype) if i == number else a for i, a in enumerate(self.arrays)]
        outputs = self.pipeline.outputs(moved)
        return float(sum(_inner(g, o) for g, o in zip(self.cotangents, outputs, strict=True)))


def _inner(g: Array, output: Array) -> float:
    wide = np.complex128 if output.dtype.kind == "c" else np.float64
    return float(np.vdot(g.astype(wide), output.astype(wide)).real)


def _random(shape: tuple[int, ...], dtype: "np.dtype[Any]", rng: np.random.Generator) -> Array:
    drawn: Array = rng.standard_normal(shape)
    if dtype.kind == "c":
        drawn = drawn + 1j * rng.standard_normal(shape)
    return np.asarray(drawn).astype(dtype)
