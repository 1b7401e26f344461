"""What a residual says of an answer, measured on the device that holds both: the figures of `certify.measure`."""

import torch


def figures(
    residual: torch.Tensor, b: torch.Tensor, x: torch.Tensor, matrix_norm: "torch.Tensor | float"
) -> torch.Tensor:
    """Of each vector, in double precision.

    Args:
        residual: `[..., n]` b - op(A) x.
        b: `[..., n]` right-hand sides, of magnitudes whose squares stay in range.
        x: `[..., n]` answers, as they will be returned.
        matrix_norm: infinity-norm of op(A), a number or one for each vector.

    Returns:
        `[3, ...]` in float64, on the device: relative residual, backward error, and the lower bound
        on the condition number. What is not a number comes out as infinite.
    """
    two, two_b = (torch.linalg.vector_norm(v, dim=-1) for v in (residual, b))
    remainder, size, largest = (largest_entry(v) for v in (residual, x, b))
    relative = torch.where(two == 0, 0.0, two / two_b)
    # Divided through by ||x||: the product ||A|| ||x|| could overflow and hide the error.
    scale = torch.where(size > 0, size, 1.0)
    backward = (remainder / scale) / (matrix_norm * (size > 0) + largest / scale)
    backward = torch.where(remainder == 0, 0.0, backward)
    condition = torch.where(largest > 0, matrix_norm * (size / largest), 0.0)
    found = torch.stack([relative, backward, condition])
    return torch.where(torch.isnan(found), torch.inf, found)


def largest_entry(rows: torch.Tensor) -> torch.Tensor:
    """Maximum norm of each row."""
    return torch.amax(torch.abs(rows), dim=-1)
