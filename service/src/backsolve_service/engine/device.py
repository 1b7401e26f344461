"""Where a method computes."""

from collections.abc import Mapping

from backsolve.errors import NotSupportedError

CPU = "cpu"


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        NotSupportedError: `device` is neither "cpu" nor a CUDA device that torch can reach.
    """
    if device == CPU:
        return
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdecimal()):
        raise NotSupportedError(f"device {device!r} is not known: use 'cpu', 'cuda' or 'cuda:<index>'", device=device)
    import torch  # noqa: PLC0415  (only a CUDA device needs it here)

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise NotSupportedError(
            f"device {device!r} is not available: torch sees {count} CUDA devices; use device 'cpu'", device=device
        )


SHARE = 0.75
"""Of a device's free memory, what factors may take by default; the rest is left to the solves themselves."""


def factor_budget(device: str) -> int:
    """Bytes of a device that factors may hold by default; 0 for the CPU, which has no room of its own."""
    figures = memory(device)
    return int(SHARE * (figures["total"] - figures["used"])) if figures else 0


def memory(device: str) -> Mapping[str, int]:
    """Bytes of an accelerator's memory, "used" and "total"; empty for the CPU."""
    if device == CPU:
        return {}
    import torch  # noqa: PLC0415  (as above)

    free, total = torch.cuda.mem_get_info(torch.device(device))
    return {"used": total - free, "total": total}
