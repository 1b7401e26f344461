"""The certificate of an answer, measured on the device that holds it: the figures of `certify.measure`."""

import torch

from backsolve.types import Trans

from .figures import figures
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
    return figures(b - operator.product(x, trans), b, x, matrix_norm)
