"""Second derivatives that PyTorch itself would get silently wrong are refused here.

PyTorch differentiates its sparse constructors, conversions and `.values()` once. A second time it
drops the term without a word: the gradient that leaves them no longer remembers how it was made.
Where a gradient that is to be differentiated again passes such a place on its way from a solve to
the user's tensors, it is marked; touching the mark raises an error that names the way out.
"""

from collections.abc import Iterator
from typing import Any, Final, final

import torch
from torch import Tensor

from ..errors import NotSupportedError

_EXITS: Final = ("ValuesBackward", "ToDenseBackward", "EntriesBackward")
"""Where numbers leave a sparse tensor: only what lies beyond one of these can be sparse."""

_MARK: Final = "backsolve.guarded"

_COMPRESSED: Final = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


@final
class Refuse(torch.autograd.Function):
    """The identity, once: differentiating it raises."""

    @staticmethod
    def forward(gradient: Tensor, *anchors: Tensor) -> Tensor:
        """Pass `gradient` on, connected to everything that the anchors depend on."""
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse.

        Raises:
            NotSupportedError: always.
        """
        raise NotSupportedError(
            "PyTorch cannot differentiate its sparse constructors and .values() twice: it would drop a term. "
            "For second derivatives use backsolve.torch.spsolve or splstsq(values, pattern, b), or a sparse tensor "
            "that is itself the leaf"
        )


def guard(values: Tensor) -> None:
    """Watch the way back from `values`, while the gradient on its way can be differentiated again."""
    for node in _beyond_exits(values.grad_fn):
        if _MARK in node.metadata:
            continue
        node.metadata[_MARK] = True
        leaf = getattr(node, "variable", None)
        if leaf is None:
            node.register_hook(_mark_lost)
        elif leaf.layout is not torch.strided:
            _watch_sum(leaf, node)


def _beyond_exits(root: Any) -> Iterator[Any]:
    """The nodes of a graph that lie behind an exit from a sparse tensor, exits included."""
    waiting, seen = [(root, False)], set()
    while waiting:
        node, beyond = waiting.pop()
        if node is None or (node, beyond) in seen:
            continue
        seen.add((node, beyond))
        beyond = beyond or node.name().startswith(_EXITS)
        if beyond:
            yield node
        waiting.extend((parent, beyond) for parent, _ in node.next_functions)


def _mark_lost(grad_inputs: tuple[Any, ...], grad_outputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """After a node ran: mark what left it without the memory that came in with its gradient."""
    anchors = [g for g in grad_outputs if g is not None and g.requires_grad]
    if not anchors or not torch.is_grad_enabled():
        return None
    # PyTorch records operations on compressed layouts whose second derivative then fails or is zero.
    suspect = any(g.layout in _COMPRESSED for g in anchors)
    return tuple(
        _refused(g, anchors)
        if g is not None and (not g.requires_grad or (suspect and g.layout is torch.strided))
        else g
        for g in grad_inputs
    )


def _watch_sum(leaf: Tensor, node: Any) -> None:
    """Mark the gradient of a sparse leaf if a part of the sum has lost its memory."""

    def check(total: Tensor) -> Tensor | None:
        handle.remove()
        node.metadata.pop(_MARK, None)
        if total.requires_grad and _has_lost_part(total.grad_fn):
            return _refused(total, [total])
        return None

    handle = leaf.register_hook(check)  # type: ignore[no-untyped-call]


def _has_lost_part(root: Any) -> bool:
    """Whether a sum of gradients has a summand that is a constant to autograd."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node is None:
            return True
        if node.name().startswith("AddBackward"):
            waiting.extend(parent for parent, _ in node.next_functions)
    return False


def _refused(gradient: Tensor, anchors: list[Tensor]) -> Tensor:
    marked: Tensor = Refuse.apply(gradient.detach(), *anchors)  # type: ignore[no-untyped-call]
    return marked
