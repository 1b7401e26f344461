"""The framing of bulk bodies: a JSON header and raw little-endian tensors, as in safetensors files.

    8 bytes     length of the header, little-endian
    header      {"b": {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}, "__metadata__": {"backsolve": "{…}"}}
    tensors     end to end, in C order; names address them, their order means nothing

Everything that is not a tensor (digests, options, certificate) is one JSON document in the
header's metadata. complex128, which the format has no name for, travels as float64 `[..., 2]`
and is listed under the document's key "complex". The encoder pads the header so that the tensors begin on
a 64-byte boundary and sorts them by element size, so that each of them is aligned as well;
a decoder that has the whole body in an aligned buffer therefore copies nothing.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from ctypes import addressof, c_char
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidDtypeError, MalformedError
from ..types import Array

MEDIA_TYPE = "application/x-safetensors"
MAX_HEADER_BYTES = 64 << 10
ALIGNMENT = 64

_DOCUMENT, _COMPLEX = "backsolve", "complex"

_DTYPES: Mapping[str, "np.dtype[Any]"] = {
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@final
@dataclass(frozen=True, slots=True)
class Body:
    """An encoded message, ready to be sent piece by piece.

    Attributes:
        parts: flat byte views; the tensors' are views of the arrays themselves, which must not
            change until the last byte is sent.
        nbytes: their total length.
    """

    parts: tuple[memoryview, ...]
    nbytes: int


@final
@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message: `tensors` are views of the body, `document` is the JSON beside them."""

    tensors: dict[str, Array]
    document: Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Span:
    """Where a tensor lies in its body, which may still be arriving: bytes `begin` to `end` from the body's start."""

    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    begin: int
    end: int


@final
@dataclass(frozen=True, slots=True)
class Header:
    """What a body says before its tensors; it may be kept and used for every body that begins with the same bytes.

    Attributes:
        spans: the tensors as they are stored, by name; they count from the first tensor's byte and lie end to end.
        paired: names of those that are complex128, stored as float64 `[..., 2]`.
        document: the JSON beside them; not to be changed.
        nbytes: of all tensors.
    """

    spans: Mapping[str, Span]
    paired: tuple[str, ...]
    document: Mapping[str, Any]
    nbytes: int


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """An uninitialised buffer of `nbytes` that begins on a 64-byte boundary."""
    raw = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
    # `raw.ctypes.data` takes six times as long, which for a small body is longer than all else that is done to it.
    start = -addressof(c_char.from_buffer(raw.data)) % ALIGNMENT
    return raw[start : start + nbytes]


def encode(tensors: Mapping[str, Array | None], document: Mapping[str, Any]) -> Body:
    """Frame named tensors and a JSON document; a tensor that is None is left out.

    Raises:
        InvalidDtypeError: a tensor's element type has no name in the format.
    """
    present = [(name, np.asarray(array, order="C")) for name, array in tensors.items() if array is not None]
    complex_names = [name for name, array in present if array.dtype == np.complex128]
    stored = sorted(
        ((name, _as_pairs(array) if name in complex_names else array) for name, array in present),
        key=lambda item: -item[1].dtype.itemsize,
    )
    text = _ENCODER.encode({**document, _COMPLEX: complex_names} if complex_names else document)
    # Written out, since an encoder of JSON takes as long to begin as all of this.
    header = [f'{{"__metadata__":{{"{_DOCUMENT}":{encode_basestring_ascii(text)}}}']
    offset = 0
    for name, array in stored:
        end = offset + array.nbytes
        kind, shape = _type_name(name, array), ",".join(map(str, array.shape))
        spot = f'{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{offset},{end}]}}'
        header.append(f",{encode_basestring_ascii(name)}:{spot}")
        offset = end
    packed = ("".join(header) + "}").encode()
    packed += b" " * (-(8 + len(packed)) % ALIGNMENT)
    head = len(packed).to_bytes(8, "little") + packed
    views = [array.reshape(-1).view(np.uint8).data for _, array in stored if array.size]
    return Body((memoryview(head), *views), len(head) + offset)


def decode(
    buffer: NDArray[np.uint8],
    data: NDArray[np.uint8] | None = None,
    read: "Callable[[bytes], Header] | None" = None,
) -> Message:
    """Take a framed body apart without copying its tensors.

    Args:
        buffer: the whole body; the tensors become views of it.
        data: the bytes of the tensors, where they do not follow the header in `buffer`.
        read: `read_header`, or what remembers its results.

    Raises:
        MalformedError: it is not such a body. Nothing in the text comes from the body.
        InvalidDtypeError: a tensor has an element type that is not read here.
    """
    text = _header_text(buffer)
    header = (read or read_header)(text)
    if data is None:
        data = buffer[8 + len(text) :]
    elif 8 + len(text) != buffer.size:
        raise MalformedError("bytes follow the header of a body whose tensors are elsewhere")
    _check_room(header, data.size)
    tensors = {name: _view(data[s.begin : s.end], s.dtype, s.shape) for name, s in header.spans.items()}
    for name in header.paired:
        tensors[name] = _from_pairs(tensors.get(name))
    return Message(tensors, header.document)


def announced(buffer: NDArray[np.uint8], position: int) -> tuple[dict[str, Span], Mapping[str, Any]] | None:
    """What the header of a body says before the tensors are there.

    Args:
        buffer: room for the whole body.
        position: bytes of it that have arrived.

    Returns:
        The tensors by name and the document; None while the header is not complete.

    Raises:
        MalformedError, InvalidDtypeError: as `decode`, which checks more.
    """
    if position < 8 or position < 8 + int.from_bytes(buffer[:8].tobytes(), "little") <= buffer.size:
        return None
    text = _header_text(buffer)
    header, start = read_header(text), 8 + len(text)
    _check_room(header, buffer.size - start)
    spans = {}
    for name, span in header.spans.items():
        pairs = name in header.paired and span.shape
        dtype, shape = (np.dtype(np.complex128), span.shape[:-1]) if pairs else (span.dtype, span.shape)
        spans[name] = Span(dtype, shape, start + span.begin, start + span.end)
    return spans, header.document


def read_header(text: bytes) -> Header:
    """Read the header of a body, without the eight bytes before it.

    Raises:
        MalformedError: it is none, or its tensors overlap or leave a hole.
        InvalidDtypeError: a tensor has an element type that is not read here.
    """
    try:
        entries = _json_object(text.decode(), "the header")
    except UnicodeDecodeError:
        raise MalformedError("the header is not UTF-8; is it a safetensors body?") from None
    metadata = entries.pop("__metadata__", {})
    listed = metadata.get(_DOCUMENT, "{}") if isinstance(metadata, dict) else None
    if not isinstance(listed, str):
        raise MalformedError(f"__metadata__ must be an object of strings; the call's document goes under {_DOCUMENT!r}")
    document = _json_object(listed, "the document in the metadata")
    paired = _names_list(document.pop(_COMPLEX, []))
    spans = {name: _read_span(entry) for name, entry in entries.items()}
    return Header(spans, tuple(paired), document, _covered(spans.values()))


def _type_name(name: str, array: Array) -> str:
    try:
        return _NAMES[array.dtype]
    except KeyError:
        raise InvalidDtypeError(
            f"{name} is {array.dtype}; float32, float64, complex64 and complex128 travel: convert it first"
        ) from None


def _as_pairs(array: Array) -> Array:
    return array.reshape(-1).view(np.float64).reshape(*array.shape, 2)


def _from_pairs(array: Array | None) -> Array:
    if array is None or array.dtype != np.float64 or array.ndim == 0 or array.shape[-1] != 2:
        raise MalformedError(f"a tensor listed under {_COMPLEX!r} must be there as F64 with a last axis of 2")
    return array.reshape(-1).view(np.complex128).reshape(array.shape[:-1])


def _header_text(buffer: NDArray[np.uint8]) -> bytes:
    """The bytes of the header."""
    length = int.from_bytes(buffer[:8].tobytes(), "little")
    if buffer.size < 8 or length > buffer.size - 8:
        raise MalformedError("the body is shorter than its own header says; is it a safetensors body?")
    if length > MAX_HEADER_BYTES:
        raise MalformedError(f"the header is longer than {MAX_HEADER_BYTES} bytes; is it a safetensors body?")
    return buffer[8 : 8 + length].tobytes()


def parse_json(text: str | bytes, what: str) -> Any:
    """Strict JSON: no NaN, no repeated key, nothing nested beyond reason.

    Raises:
        MalformedError: it is not; the text names only where.
    """
    try:
        return _DECODER.decode(text if isinstance(text, str) else text.decode(json.detect_encoding(text)))
    except json.JSONDecodeError as err:
        raise MalformedError(f"{what} is not JSON (line {err.lineno}, column {err.colno})") from None
    except UnicodeDecodeError:
        raise MalformedError(f"{what} is not UTF-8 text") from None
    except (ValueError, RecursionError):
        raise MalformedError(
            f"{what} is not strict JSON: NaN and Infinity, repeated keys, integers of thousands of digits and very "
            "deep nesting are refused"
        ) from None


def _json_object(text: str, what: str) -> dict[str, Any]:
    parsed = parse_json(text, what)
    if not isinstance(parsed, dict):
        raise MalformedError(f"{what} is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("repeated key")
    return made


def _no_constant(_: str) -> Any:
    raise ValueError("not JSON")


# Made once: `json.loads` and `json.dumps` with arguments make one for each call, a third of their time on a header.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


_MISFIT = "a tensor's data_offsets do not fit its shape, or point outside the body"


def _read_span(entry: Any) -> Span:
    """Element type, shape and place of one tensor, checked against each other."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise MalformedError("each tensor needs dtype, shape and data_offsets [begin, end]") from None
    if not isinstance(shape, list) or len(shape) > 8 or not all(_natural(value) for value in (*shape, begin, end)):
        raise MalformedError("shape and data_offsets must be lists of non-negative integers, of at most 8 dimensions")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise InvalidDtypeError(f"a tensor has an element type that is not read here; known are {', '.join(_DTYPES)}")
    dtype = _DTYPES[kind]
    if not begin <= end or end - begin != math.prod(shape) * dtype.itemsize:
        raise MalformedError(_MISFIT)
    return Span(dtype, tuple(shape), begin, end)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _view(data: NDArray[np.uint8], dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> Array:
    array = data.view(dtype)
    if not array.flags.aligned:
        array = aligned_copy(data).view(dtype)  # another encoder's order: libraries below expect alignment
    return array.reshape(shape)


def aligned_copy(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of some bytes that begins on a 64-byte boundary."""
    copy = aligned(data.size)
    np.copyto(copy, data)
    return copy


def _covered(spans: Iterable[Span]) -> int:
    """Bytes of tensors that lie end to end: no overlap, no hole."""
    position = 0
    for begin, end in sorted((span.begin, span.end) for span in spans):
        if begin != position:
            raise MalformedError("tensors overlap or leave a hole between them")
        position = end
    return position


def _check_room(header: Header, size: int) -> None:
    """Tensors must fill the data exactly."""
    if header.nbytes > size:
        raise MalformedError(_MISFIT)
    if header.nbytes < size:
        raise MalformedError(f"{size - header.nbytes} bytes follow the last tensor")


def _names_list(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise MalformedError(f"{_COMPLEX!r} must be a list of tensor names")
    return value
