"""What a wrong gradient looks like, and so what may be its cause."""

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np

from ..types import Array
from .report import Entry

_CLOSE: Final = 1e-4
_NOISY: Final = 0.3
"""Of an error, that the difference quotient itself is not known better than: it proves nothing."""


def hints(
    inputs: Sequence[Array], gradients: Sequence[Array], wrong: Sequence[Entry], kinks: Collection[int]
) -> tuple[str, ...]:
    """Sentences, the likeliest cause first.

    Args:
        inputs, gradients: all of them.
        wrong: entries and directions that failed.
        kinks: inputs in which the slopes to both sides differ.
    """
    found: list[str] = []
    for number in sorted({e.input for e in wrong}):
        own = [e for e in wrong if e.input == number]
        singles = [e for e in own if e.index is not None]
        name = f"input {number}: "
        if any(not np.isfinite(e.error) for e in own):
            found.append(name + "NaN or infinity: does a solve fail with on_failure='nan', or leave f's domain?")
        elif all(e.noise > _NOISY * e.error for e in own):
            found.append(name + _restless(inputs[number]))
        elif number in kinks:
            found.append(name + "the slopes to both sides differ: f is not differentiable there (abs, max, relu at 0)")
        elif not gradients[number].any():
            found.append(name + "the gradient is zero: was the input detached, or its type changed on the way?")
        elif singles:
            found += [name + text for text in _pattern(singles, gradients[number])]
    if any(np.finfo(a.dtype).dtype.itemsize == 4 for a in inputs):
        found.append("single precision carries about 7 digits: check the same pipeline in float64")
    return tuple(found)


def _restless(array: Array) -> str:
    text = (
        "the differences do not settle at any step: f is noisy (an iterative solve that stops early: tighten its "
        "rtol), random, or not differentiable there"
    )
    return text if array.dtype.itemsize > 4 else text + "; or it needs double precision"


def _pattern(singles: Sequence[Entry], gradient: Array) -> list[str]:
    got, expected = np.array([e.got for e in singles]), np.array([e.expected for e in singles])
    if _close(got, np.conj(expected)):
        return ["it is the conjugate of what it should be: a conjugate is missing, or JAX's convention was used"]
    if gradient.ndim == 2 and gradient.shape[0] == gradient.shape[1]:
        across = np.array([gradient.T[e.index] for e in singles if e.index is not None])
        if _close(across, expected):
            return ["it is transposed: trans and its adjoint, or rows and columns, are exchanged"]
        if _close(np.conj(across), expected):
            return ["it is the conjugate transpose of what it should be"]
    ratio = np.vdot(expected, got).real / max(np.vdot(expected, expected).real, np.finfo(float).tiny)
    if len(singles) > 1 and _close(got, ratio * expected):
        more = (
            " (an entry of a symmetric matrix counted twice, or once too few: see storage)"
            if _close_to_two(ratio)
            else ""
        )
        return [f"it is {ratio:.6g} times what it should be{more}"]
    return []


def _close_to_two(ratio: float) -> bool:
    return min(abs(ratio - 2), abs(ratio - 0.5)) < 0.01


def _close(a: Array, b: Array) -> bool:
    return bool(np.linalg.norm(a - b) <= _CLOSE * np.linalg.norm(b))
