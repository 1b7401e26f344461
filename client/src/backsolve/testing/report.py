"""What a check of gradients has found, in figures and in words."""

from dataclasses import dataclass
from typing import final

Index = tuple[int, ...]


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a gradient beside its central difference.

    Attributes:
        input: number of the input.
        index: within it; None: of a direction in all of its entries.
        got: what f says, or its framework.
        expected: the difference quotient; of a complex entry `∂L/∂Re + i ∂L/∂Im`.
        error: |got - expected|, relative to the largest entry of the input's gradient (of a direction: to what the
            product may be).
        step: the step that settled best, relative to the input's size.
        noise: by how much the quotients of neighbouring steps differ, relative likewise.
    """

    input: int
    index: Index | None
    got: complex
    expected: complex
    error: float
    step: float
    noise: float


@final
@dataclass(frozen=True, slots=True)
class GradcheckReport:
    """The outcome of `gradcheck`.

    Attributes:
        ok: nothing is wrong.
        framework: "torch", "jax", "tensorflow" or "numpy".
        directions: ⟨g, J v⟩ by differences beside ⟨Jᵀ g, v⟩, for random v in each input.
        entries: single entries.
        forward: the largest relative difference of ⟨g, J v⟩ by the framework's forward mode and ⟨Jᵀ g, v⟩; None where
            it was not asked for.
        rtol: what errors are held against.
        hints: what may be the cause.
        evaluations: how often f was called.
    """

    ok: bool
    framework: str
    directions: tuple[Entry, ...]
    entries: tuple[Entry, ...]
    forward: float | None
    rtol: float
    hints: tuple[str, ...]
    evaluations: int

    @property
    def worst(self) -> Entry:
        """The single entry with the largest error, or the direction if no entry was looked at."""
        return max(self.entries or self.directions, key=_badness)

    @property
    def best_step(self) -> float:
        """The step that settled best, of all that was looked at."""
        return min((*self.directions, *self.entries), key=lambda e: e.noise).step

    def __str__(self) -> str:
        lines = [f"gradient {'right' if self.ok else 'WRONG'} ({self.framework}), tolerance {self.rtol:.1e}"]
        if not self.ok:
            w = self.worst
            where = "a direction" if w.index is None else f"entry {w.index}"
            lines.append(f"  input {w.input}, {where}: got {w.got:.10g}, expected {w.expected:.10g}")
        inputs = sorted({e.input for e in self.directions})
        for number in inputs:
            for what, found in (("directions", self.directions), ("entries", self.entries)):
                own = [e for e in found if e.input == number]
                if own:
                    w = max(own, key=_badness)
                    lines.append(
                        f"  input {number}: {len(own)} {what}, worst error {w.error:.1e} at step {w.step:.0e}, "
                        f"which is known to {w.noise:.1e}"
                    )
        if self.forward is not None:
            lines.append(f"  forward mode against reverse mode: {self.forward:.1e}")
        lines += [f"  hint: {hint}" for hint in self.hints]
        return "\n".join(lines)


def _badness(entry: Entry) -> float:
    return entry.error if entry.error == entry.error else float("inf")


@final
class GradcheckError(AssertionError):
    """A gradient is wrong.

    Attributes:
        report: all that was found.
    """

    def __init__(self, report: GradcheckReport) -> None:
        super().__init__(str(report))
        self.report = report
