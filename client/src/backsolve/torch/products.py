"""Hessian-vector products, Gauss-Newton products and Jacobians of functions that solve, with few solves.

Counted in solves with the one factor of the forward, for a function with one solve in it:

    value and gradient        1 + 1
    hvp                       2 more: both reverse over reverse and forward over reverse need as many
    gnvp                      value 1, J v 1 (a tangent), Jᵀ w 1 (an adjoint)
    jacobian                  value 1, and 1 request for all rows or all columns together

The functions are the user's own, of real or complex tensors; complex gradients are with respect to the conjugate,
as PyTorch's are, and products with a Hessian are those of the real inner product Re⟨·, ·⟩.

Source: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast curvature matrix-vector
products for second-order gradient descent", 2002.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InvalidDtypeError, InvalidOptionError, InvalidShapeError

Inputs = Tensor | tuple[Tensor, ...]
"""What a function is called with: one tensor, or several."""


@final
class HessianProducts:
    """The Hessian of a scalar function at one point, as an operator: the value and gradient are computed once.

        H = HessianProducts(f, x)
        step = cg(H, -H.gradient)        # each H(v) costs two solves

    Args:
        f: of as many tensors as `inputs` has; a real scalar.
        inputs: where; not changed.

    Attributes:
        value: f there.
        gradient: shaped like the inputs, one or several.

    Raises:
        InvalidShapeError: f is no real scalar.
        InvalidDtypeError: an input is no tensor of floating-point numbers.
        BacksolveError: as of the solves in f.
    """

    def __init__(self, f: Callable[..., Tensor], inputs: Inputs) -> None:
        self._one = isinstance(inputs, Tensor)
        self._inputs = tuple(t.detach().requires_grad_() for t in _several(inputs, "inputs"))
        with torch.enable_grad():
            value = _scalar(f(*self._inputs), "f")
            self._gradient = _pulled(value, self._inputs, torch.ones_like(value), further=True)
        self.value = value.detach()
        self.gradient: Inputs = self._like(tuple(g.detach() for g in self._gradient))

    def __call__(self, v: Inputs) -> Inputs:
        """`H v`: two solves for each solve in f.

        Args:
            v: shaped like the inputs.

        Returns:
            Shaped like the inputs.

        Raises:
            InvalidShapeError, InvalidDtypeError: v is not like the inputs.
        """
        given = _alike(v, self._inputs, "v")
        depending = [(g, along) for g, along in zip(self._gradient, given, strict=True) if g.requires_grad]
        if not depending:  # f is linear
            return self._like(tuple(torch.zeros_like(t) for t in self._inputs))
        gradients, along = zip(*depending, strict=True)
        return self._like(_pulled(gradients, self._inputs, along, keep=True))

    def _like(self, tensors: tuple[Tensor, ...]) -> Inputs:
        return tensors[0] if self._one else tensors


def hvp(f: Callable[..., Tensor], inputs: Inputs, v: Inputs) -> tuple[Tensor, Inputs]:
    """Value of a scalar function, and the product of its Hessian with a vector.

    For one solve in f that is four solves with one factor: x, the gradient's adjoint, and two more. For more
    products at one point, `HessianProducts` does the first two once.

    Args:
        f: of as many tensors as `inputs` has; a real scalar.
        inputs: where.
        v: shaped like the inputs.

    Returns:
        The value, and `H v` shaped like the inputs; both detached.

    Raises:
        InvalidShapeError, InvalidDtypeError: f is no real scalar, or v not like the inputs.
        NotSupportedError: f has a sparse tensor in it that PyTorch can differentiate only once.
    """
    _alike(v, _several(inputs, "inputs"), "v")
    products = HessianProducts(f, inputs)
    return products.value, products(v)


def gnvp(
    model: Callable[..., Tensor], loss: Callable[[Tensor], Tensor] | None, inputs: Inputs, v: Inputs
) -> tuple[Tensor, Inputs]:
    """Product of the Gauss-Newton matrix `Jᵀ H J` of `loss(model(inputs))` with a vector.

    J is the Jacobian of the model, H the Hessian of the loss with respect to the model's output. For a convex
    loss the matrix is positive semidefinite where the Hessian need not be.

    Args:
        model: of as many tensors as `inputs` has; one tensor.
        loss: of that tensor; a real scalar. None: half the sum of squares, `H = I`, of a residual.
        inputs: where.
        v: shaped like the inputs.

    Returns:
        The loss, and the product, shaped like the inputs; both detached.

    Raises:
        InvalidShapeError, InvalidDtypeError: the loss is no real scalar, or v not like the inputs.
        NotSupportedError: an operation of the model has no forward-mode derivative.
    """
    points = tuple(t.detach().requires_grad_() for t in _several(inputs, "inputs"))
    along = _alike(v, points, "v")
    with torch.enable_grad(), forward_ad.dual_level():
        # One evaluation for both: its primal has the graph of the adjoint, its tangent is J v.
        duals = [_dual(p, d) for p, d in zip(points, along, strict=True)]
        residual, pushed = _parts(_tensor(model(*duals), "model"))
    moved = torch.zeros_like(residual) if pushed is None else pushed.detach()
    value, curved = _curvature(loss, residual.detach(), moved)
    found = _pulled(residual, points, curved)
    return value, found[0] if isinstance(inputs, Tensor) else found


def jacobian(
    f: Callable[..., Tensor], inputs: Inputs, *, mode: Literal["auto", "reverse", "forward"] = "auto"
) -> tuple[Tensor, Inputs]:
    """Value and Jacobian of a function, all rows (or all columns) of it in one request for each solve in f.

    Every operation of f must work under `torch.func.vmap`. What is mapped becomes columns of one right-hand side.

    Args:
        f: of as many tensors as `inputs` has; one tensor.
        inputs: real.
        mode: "reverse" pulls back each number of the output, "forward" pushes each number of the inputs; "auto"
            takes the fewer. Forward evaluates f once more.

    Returns:
        The value, and for each input `∂f/∂input`, `[*output, *input]`; detached.

    Raises:
        InvalidDtypeError: complex inputs, where a derivative is no Jacobian of complex numbers: take the real and the
            imaginary part as two inputs.
        InvalidOptionError: no such mode; or "reverse" of a complex output.
    """
    points = tuple(t.detach() for t in _several(inputs, "inputs"))
    if any(point.is_complex() for point in points):
        raise InvalidDtypeError("a Jacobian is of real inputs: take the real and the imaginary part as two inputs")
    if mode not in ("auto", "reverse", "forward"):
        raise InvalidOptionError("mode must be 'auto', 'reverse' or 'forward'", option="mode")
    evaluated: tuple[Tensor, Callable[..., Any]] = torch.func.vjp(f, *points)[:2]
    value, pull = evaluated
    _tensor(value, "f")
    if value.is_complex() and mode == "reverse":
        raise InvalidOptionError("f is complex: use mode='forward'", option="mode")
    rows, columns = value.numel(), sum(point.numel() for point in points)
    backwards = mode == "reverse" or (mode == "auto" and rows <= columns and not value.is_complex())
    if backwards:
        basis = torch.eye(rows, dtype=value.dtype, device=value.device).reshape(rows, *value.shape)
        found = torch.func.vmap(pull)(basis)
        jacobians = tuple(j.reshape(*value.shape, *p.shape) for j, p in zip(found, points, strict=True))
    else:
        jacobians = _forward_columns(f, points, value)
    return value, jacobians[0] if isinstance(inputs, Tensor) else jacobians


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    made: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return made


def _parts(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    primal, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return primal, tangent


def _forward_columns(f: Callable[..., Tensor], points: tuple[Tensor, ...], value: Tensor) -> tuple[Tensor, ...]:
    """The columns of the Jacobian, pushed forward all at once."""
    sizes = [point.numel() for point in points]
    basis = torch.eye(sum(sizes), dtype=points[0].dtype, device=points[0].device)
    directions = tuple(
        part.to(point).reshape(-1, *point.shape)
        for part, point in zip(torch.split(basis, sizes, 1), points, strict=True)
    )

    def push(*direction: Tensor) -> Tensor:
        pushed: Tensor = torch.func.jvp(f, points, direction)[1]
        return pushed

    columns: Tensor = torch.func.vmap(push)(*directions)
    return tuple(
        part.movedim(0, -1).reshape(*value.shape, *point.shape)
        for part, point in zip(torch.split(columns, sizes), points, strict=True)
    )


def _curvature(loss: Callable[[Tensor], Tensor] | None, residual: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its Hessian at the residual times `moved`."""
    if loss is None:
        return (residual.abs().square().sum() / 2), moved
    products = HessianProducts(loss, residual)
    found = products(moved)
    assert isinstance(found, Tensor)
    return products.value, found


def _pulled(
    outputs: Tensor | Sequence[Tensor],
    inputs: tuple[Tensor, ...],
    cotangents: Tensor | Sequence[Tensor],
    *,
    further: bool = False,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients; zeros for inputs that do not enter."""
    several: Sequence[Tensor] = [outputs] if isinstance(outputs, Tensor) else outputs
    if not any(output.requires_grad for output in several):
        return tuple(torch.zeros_like(t) for t in inputs)
    found = torch.autograd.grad(
        outputs, inputs, cotangents, create_graph=further, retain_graph=further or keep, allow_unused=True
    )
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True))


def _several(inputs: Any, name: str) -> tuple[Tensor, ...]:
    several = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    for tensor in several:
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            raise InvalidDtypeError(f"{name} must be a tensor of floating-point numbers, or a tuple of such")
    if not several:
        raise InvalidShapeError(f"{name} is empty: there is nothing to differentiate with respect to")
    return several


def _alike(v: Any, inputs: tuple[Tensor, ...], name: str) -> tuple[Tensor, ...]:
    several = _several(v, name)
    if [t.shape for t in several] != [t.shape for t in inputs]:
        raise InvalidShapeError(
            f"{name} has shapes {[tuple(t.shape) for t in several]}, the inputs {[tuple(t.shape) for t in inputs]}"
        )
    if any(a.dtype != b.dtype for a, b in zip(several, inputs, strict=True)):
        raise InvalidDtypeError(f"{name} must have the element types of the inputs")
    return tuple(t.detach() for t in several)


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidShapeError(f"{name} must return one tensor, not {type(value).__name__}")
    return value


def _scalar(value: Any, name: str) -> Tensor:
    if _tensor(value, name).numel() != 1 or value.is_complex():
        raise InvalidShapeError(f"{name} must be a real scalar, it has shape {tuple(value.shape)} and {value.dtype}")
    found: Tensor = value
    return found
