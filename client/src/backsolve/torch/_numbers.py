"""Tensors that have a shape and no numbers that could be sent."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import NotSupportedError


def check_numbers(tensor: Tensor) -> None:
    """Refuse a tensor whose numbers are not there.

    Raises:
        NotSupportedError: it is on the meta device, is a fake one, is nested or in a layout that only PyTorch's own
            kernels read, or is a subclass that keeps its numbers elsewhere.
    """
    if tensor.is_nested:
        raise NotSupportedError("a nested tensor is a list of matrices of several sizes: solve with each of its parts")
    if isinstance(tensor, FakeTensor):
        raise NotSupportedError(
            "a FakeTensor has a shape and no numbers, so that there is nothing to solve: trace the call with "
            "torch.compile or torch.export, or leave FakeTensorMode and give real tensors"
        )
    if tensor.is_meta:
        raise NotSupportedError(
            "a tensor on the meta device has a shape and no numbers, so that there is nothing to solve: give tensors "
            "on 'cpu' or 'cuda', for a module by to_empty(device=...) and its weights"
        )
    if tensor.layout is torch._mkldnn:  # type: ignore[attr-defined]
        raise NotSupportedError("a tensor in oneDNN's layout cannot be read as it is: use to_dense()")
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise NotSupportedError(
            f"a {type(tensor).__name__} keeps its numbers in other tensors: give a plain one, by its own way back "
            "(full_tensor() of a DTensor, get_data() of a MaskedTensor)"
        )
