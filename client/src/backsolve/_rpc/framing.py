"""How tensors travel: inside a message while they are small, else in chunks; and every limit on it.

Both ends use this module, so that neither can send what the other refuses. Received bytes are
copied into arrays which are allocated once, from sizes that were checked before.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidDtypeError, MalformedError, MemoryBudgetError, PayloadTooLargeError
from ..types import Array
from ..v1 import types_pb2

MESSAGE_BYTES = 8 << 20
"""The largest message either end sends or takes."""

UNARY_BYTES = 4 << 20
"""The most tensor bytes one message carries in each direction; beyond that chunks are faster."""

CHUNK_BYTES = 1 << 20
"""Pieces of this size stay in a core's cache on their way and hold the GIL for less than 1 ms each."""

ELEMENTS_PER_FRAME = 1 << 14
"""About 0.5 MiB of batch elements."""

ELEMENT_BYTES = 32
"""No encoded element of a certificate is larger."""

_FOREIGN = sys.byteorder != "little"
"""Whether numbers have another order here than on the wire."""

_MAX_NDIM = 8
_MAX_BYTES = 1 << 62

_DTYPES: Mapping["types_pb2.Dtype", np.dtype[Any]] = {
    types_pb2.DTYPE_FLOAT32: np.dtype(np.float32),
    types_pb2.DTYPE_FLOAT64: np.dtype(np.float64),
    types_pb2.DTYPE_COMPLEX64: np.dtype(np.complex64),
    types_pb2.DTYPE_COMPLEX128: np.dtype(np.complex128),
    types_pb2.DTYPE_INT32: np.dtype(np.int32),
    types_pb2.DTYPE_INT64: np.dtype(np.int64),
}
_WIRE_DTYPES = {dtype: number for number, dtype in _DTYPES.items()}
_TENSOR = types_pb2.Tensor.DESCRIPTOR


class Message(Protocol):
    """What is used of a protobuf message that has tensors."""

    DESCRIPTOR: Any

    def ListFields(self) -> Any:  # noqa: N802  (protobuf's name)
        """Pairs (field descriptor, value) of the fields that are set, by number."""


def channel_options() -> list[tuple[str, int]]:
    """Options of a gRPC channel and of a server alike: the limits on one message."""
    return [("grpc.max_send_message_length", MESSAGE_BYTES), ("grpc.max_receive_message_length", MESSAGE_BYTES)]


def describe(array: Array) -> types_pb2.Tensor:
    """The tensor of an array, without its data.

    Raises:
        InvalidDtypeError: an element type that has no number on the wire.
    """
    number = _WIRE_DTYPES.get(array.dtype if array.dtype.isnative else array.dtype.newbyteorder("="))
    if number is None:
        names = ", ".join(d.name for d in _DTYPES.values())
        raise InvalidDtypeError(f"arrays of {array.dtype} cannot be sent: convert to one of {names}")
    return types_pb2.Tensor(dtype=number, shape=array.shape, nbytes=array.nbytes)


def tensors(message: Message) -> dict[str, types_pb2.Tensor]:
    """The tensors that are set in a message, by field name."""
    return {field.name: value for field, value in message.ListFields() if field.message_type is _TENSOR}


def kinds(message: Message) -> dict[str, tuple["np.dtype[Any]", tuple[int, ...]]]:
    """Element type and shape of the tensors that are set in a message, by field name.

    Raises:
        MalformedError: sizes that contradict each other.
    """
    return {
        name: (_checked(name, tensor, tensor.data), tuple(tensor.shape)) for name, tensor in tensors(message).items()
    }


def embed(message: Message, arrays: Mapping[str, Array]) -> None:
    """Put the data of `arrays` into the tensors of `message` that describe them."""
    for name, array in arrays.items():
        getattr(message, name).data = _bytes_of(array).tobytes()


def chunks(message: Message, arrays: Mapping[str, Array]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Cut the data of `arrays`, described in `message`, into (field number, offset, piece); pieces are views."""
    for name, array in arrays.items():
        number = message.DESCRIPTOR.fields_by_name[name].number
        data = _bytes_of(array)
        for offset in range(0, data.size, CHUNK_BYTES):
            yield number, offset, data[offset : offset + CHUNK_BYTES]


def payload_bytes(message: Message) -> int:
    """Bytes of all tensors as they were declared."""
    return sum(tensor.nbytes for tensor in tensors(message).values())


def check_payload(size: int, limit: int) -> None:
    """Refuse a call whose tensors are too large; both ends do, the client before it sends them.

    Raises:
        PayloadTooLargeError: they are.
    """
    if size > limit:
        raise PayloadTooLargeError(
            f"the call carries {size} bytes, the limit is {limit}: "
            "split the right-hand sides, or raise the server's payload limit",
            limit=limit,
            size=size,
        )


@final
class Assembler:
    """The arrays that a message announces, filled from the message itself or from chunks.

    Args:
        message: its tensors carry all of their data or none.
        max_payload_bytes: limit on the sum of the declared sizes; None for no limit.

    Attributes:
        size: sum of the declared sizes.
        watch: if set, hears of every chunk's tensor, by field name, and of its bytes once they are in place.

    Raises:
        MalformedError: sizes that contradict each other.
        PayloadTooLargeError: more than the limit; nothing has been allocated.
        MemoryBudgetError: the memory cannot be had.
    """

    def __init__(self, message: Message, max_payload_bytes: int | None) -> None:
        self.watch: Callable[[str, NDArray[np.uint8]], None] | None = None
        self._names: dict[int, str] = {}
        declared = tensors(message)
        checked = {name: _checked(name, tensor, tensor.data) for name, tensor in declared.items()}
        size = sum(tensor.nbytes for tensor in declared.values())
        if max_payload_bytes is not None:
            check_payload(size, max_payload_bytes)
        self.size = size
        self._arrays: dict[str, Array] = {}
        self._targets: dict[int, NDArray[np.uint8]] = {}
        self._filled: dict[int, int] = {}
        try:
            for name, tensor in declared.items():
                self._allocate(message.DESCRIPTOR.fields_by_name[name].number, name, tensor, checked[name])
        except MemoryError as error:
            raise _no_room(size) from error

    def _allocate(self, number: int, name: str, tensor: types_pb2.Tensor, dtype: np.dtype[Any]) -> None:
        array = np.empty(tuple(tensor.shape), dtype.newbyteorder("<") if _FOREIGN else dtype)
        self._arrays[name] = array
        flat = _bytes_of(array)
        if tensor.data:
            np.copyto(flat, np.frombuffer(tensor.data, np.uint8))
        elif flat.size:
            self._targets[number], self._filled[number], self._names[number] = flat, 0, name

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return not self._targets

    def add(self, number: int, offset: int, data: bytes | memoryview) -> None:
        """Take a piece of the tensor with this field number.

        Raises:
            MalformedError: the piece is not the next one, is too long, or belongs to no tensor
                that still lacks bytes.
        """
        target = self._targets.get(number)
        if target is None:
            raise MalformedError("a chunk belongs to no tensor that lacks bytes: send each byte once")
        filled = self._filled[number]
        if offset != filled:
            raise MalformedError(f"a chunk begins at byte {offset}, the next one is {filled}: send chunks in order")
        end = filled + len(data)
        if not 0 < len(data) <= CHUNK_BYTES:
            raise MalformedError(f"a chunk holds {len(data)} bytes: send 1 to {CHUNK_BYTES}")
        if end > target.size:
            raise MalformedError(f"a chunk ends at byte {end} of a tensor of {target.size}")
        # copyto releases the GIL; assigning slices of memoryviews does not.
        np.copyto(target[filled:end], np.frombuffer(data, np.uint8))
        self._filled[number] = end
        if self.watch is not None:
            self.watch(self._names[number], target[filled:end])
        if end == target.size:
            del self._targets[number]

    def finish(self) -> dict[str, Array]:
        """The arrays by field name, in the machine's byte order.

        Raises:
            MalformedError: bytes are missing.
        """
        if self._targets:
            missing = sum(target.size - self._filled[number] for number, target in self._targets.items())
            raise MalformedError(f"{missing} announced bytes are missing: send every tensor whole")
        return {name: array if array.dtype.isnative else _native(array) for name, array in self._arrays.items()}


def embedded(message: Message, max_payload_bytes: int | None) -> dict[str, Array]:
    """The arrays of a message that holds all of its data; what an `Assembler` gives, for a third of its time.

    Raises:
        MalformedError, PayloadTooLargeError, MemoryBudgetError: as `Assembler` raises them.
    """
    declared = tensors(message)
    size = sum(tensor.nbytes for tensor in declared.values())
    if max_payload_bytes is not None:
        check_payload(size, max_payload_bytes)
    try:
        return {name: _embedded(name, tensor) for name, tensor in declared.items()}
    except MemoryError as error:
        raise _no_room(size) from error


def _embedded(name: str, tensor: types_pb2.Tensor) -> Array:
    data = tensor.data  # each look at it is a copy
    dtype = _checked(name, tensor, data)
    if len(data) != tensor.nbytes:
        raise MalformedError(f"{tensor.nbytes} announced bytes are missing: send every tensor whole")
    array = np.empty(tuple(tensor.shape), dtype.newbyteorder("<") if _FOREIGN else dtype)
    _bytes_of(array)[...] = np.frombuffer(data, np.uint8)
    return _native(array) if _FOREIGN else array


def _no_room(size: int) -> MemoryBudgetError:
    return MemoryBudgetError(f"no memory for a call of {size} bytes: send less at a time", size=size)


def _checked(name: str, tensor: types_pb2.Tensor, data: bytes) -> np.dtype[Any]:
    """The element type of a tensor whose sizes fit each other, and its data, if there are any."""
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise MalformedError(f"tensor {name} has no element type that this version knows")
    shape = tuple(tensor.shape)
    # Zeros are skipped: (0, 2**62) has no bytes, and NumPy refuses it all the same.
    if len(shape) > _MAX_NDIM or any(d < 0 for d in shape) or math.prod(d for d in shape if d) >= _MAX_BYTES // 16:
        raise MalformedError(f"tensor {name} has an impossible shape of {len(shape)} dimensions")
    if math.prod(shape) * dtype.itemsize != tensor.nbytes:
        raise MalformedError(
            f"tensor {name} declares {tensor.nbytes} bytes, which its shape and element type contradict"
        )
    if data and len(data) != tensor.nbytes:
        raise MalformedError(f"tensor {name} declares {tensor.nbytes} bytes and carries {len(data)}")
    return dtype


def _bytes_of(array: Array) -> NDArray[np.uint8]:
    """The little-endian bytes of an array in C order; a view where it already has that form."""
    dtype = array.dtype
    if _FOREIGN or not (dtype.isnative and array.flags.c_contiguous):
        array = np.ascontiguousarray(array, dtype=dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8)


def _native(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("="))
