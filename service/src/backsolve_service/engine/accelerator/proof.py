"""The certificate of an answer, measured on the device that holds it: the figures of `certify.measure`."""

import torch

from backsolve.types import Trans

from .operator import DeviceOperator


def prove(operator: DeviceOperator, b: torch.Tensor, x: torch.Tensor, trans: Trans, matrix_norm: float) -> torch.Tensor:
    """What the true residual of each answer says.

    Args:
        operator: of the matrix.
        b: `[k, n]` right-hand sides in double precision, of magnitudes whose squares stay in range.
        x: `[k, n]` answers in double precision, as they will be returned.
        trans: which operator.
        matrix_norm: infinity-norm of op(A).

    Returns:
        `[3, k]` in float64, on the device: relative residual, backward error, and the lower bound
        on the condition number. What is not a number comes out as infinite.
    """
    residual = b - operator.product(x, trans)
    two, two_b = (torch.linalg.vector_norm(v, dim=1) for v in (residual, b))
    remainder, size, largest = (largest_entry(v) for v in (residual, x, b))
    relative = torch.where(two == 0, 0.0, two / two_b)
    # Divided through by ||x||: the product ||A|| ||x|| could overflow and hide the error.
    scale = torch.where(size > 0, size, 1.0)
    backward = (remainder / scale) / (matrix_norm * (size > 0) + largest / scale)
    backward = torch.where(remainder == 0, 0.0, backward)
    condition = torch.where(largest > 0, matrix_norm * (size / largest), 0.0)
    figures = torch.stack([relative, backward, condition])
    return torch.where(torch.isnan(figures), torch.inf, figures)


def largest_entry(rows: torch.Tensor) -> torch.Tensor:
    """Maximum norm of each row."""
    return torch.amax(torch.abs(rows), dim=1)
