"""Matrices in any format that people have them in, brought into canonical form.

Everything is bounded before it is allocated: a short body may announce a huge matrix, and a zip
archive may unpack to far more than was sent.
"""

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import mmread
from scipy.sparse import coo_array, csc_array

from backsolve._rest.body import MEDIA_TYPE, decode
from backsolve._rest.messages import read_shape, read_storage
from backsolve.canonical import canonicalise, native
from backsolve.errors import (
    BacksolveError,
    InvalidDtypeError,
    InvalidPatternError,
    InvalidShapeError,
    MalformedError,
    NotSupportedError,
    PayloadTooLargeError,
)
from backsolve.matrix import Matrix
from backsolve.types import Array

from . import people
from .assemble import Shape, check_size, compressed, dense, shape_of
from .media import JSON

_WHOLE_BODY = 0.9
_NPZ_MEMBERS = ("format", "shape", "data", "indices", "indptr", "row", "col", "_is_array")
_NPZ_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tokenize.TokenError,  # out of NumPy's reader of array headers
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def read_matrix(
    media_type: str, body: NDArray[np.uint8], limit: int, base_of: people.BaseOf = people.nothing_held
) -> Matrix:
    """An uploaded matrix in canonical form.

    Args:
        media_type: one of `READERS`.
        body: the upload.
        limit: most bytes that the matrix may take in memory.
        base_of: the matrix of a name, for an update to stand on.

    Raises:
        InvalidInputError: as each fault is.
        PayloadTooLargeError: the matrix would be larger than `limit`.
        NeedMatrixError, NeedValuesError: what an update stands on is not held.
    """
    if media_type == JSON:
        return _from_json(body, limit, base_of)
    return READERS[media_type](body, limit)


def _from_json(body: NDArray[np.uint8], limit: int, base_of: people.BaseOf = people.nothing_held) -> Matrix:
    if body.size > people.MAX_BYTES:
        raise PayloadTooLargeError(
            f"a JSON body has at most {people.MAX_BYTES} bytes: send {MEDIA_TYPE} or a SciPy .npz",
            limit=people.MAX_BYTES,
            size=body.size,
        )
    return people.read_matrix(people.parse_object(body, people.MATRIX_KEYS), base_of)


def _from_safetensors(body: NDArray[np.uint8], limit: int) -> Matrix:
    """Any file with a tensor "values", and "indptr" and "indices" if it is sparse."""
    message = decode(body)
    tensors = message.tensors
    if message.document.get("values_only"):
        raise MalformedError("values alone go to PUT /v1/matrices/{pattern}-{values}, beside a pattern held already")
    if "values" not in tensors:
        raise MalformedError('the body has no tensor "values"')
    if "indptr" not in tensors or "indices" not in tensors:
        values = tensors["values"]
        return dense(values, read_storage(message.document, shape_of(values)))
    n = max(tensors["indptr"].size - 1, 0)
    shape = read_shape(message.document.get("shape", [n, n]))
    storage = read_storage(message.document, shape)
    return compressed(tensors["values"], tensors["indices"], tensors["indptr"], shape, storage)


def _from_matrix_market(body: NDArray[np.uint8], limit: int) -> Matrix:
    """NIST's text format, as `scipy.io.mmwrite` writes it."""
    text = body.tobytes()
    _check_matrix_market(text, limit)
    try:
        parsed = mmread(io.BytesIO(text))
    except (ValueError, OverflowError, OSError, TypeError):
        raise MalformedError(
            "the Matrix Market text cannot be read: is each entry a line 'row column value'?"
        ) from None
    return canonicalise(coo_array(parsed) if hasattr(parsed, "tocoo") else parsed).matrix


def _check_matrix_market(text: bytes, limit: int) -> None:
    """Check what the header announces against what is there, before a reader allocates for it."""
    head, _, rest = text.partition(b"\n")
    words = head.lower().split()
    if len(words) != 5 or words[:2] != [b"%%matrixmarket", b"matrix"]:
        raise MalformedError("a Matrix Market text begins with %%MatrixMarket matrix, format, field and symmetry")
    if words[3] == b"pattern":
        raise InvalidDtypeError("a Matrix Market pattern has no values: write it with field real or complex")
    while rest[:1] in (b"%", b"\n", b"\r"):
        rest = rest.partition(b"\n")[2]
    line, _, entries = rest.partition(b"\n")
    sizes = line.split()
    coordinate = words[2] == b"coordinate"
    if len(sizes) != (3 if coordinate else 2) or not all(size.isdigit() and len(size) < 19 for size in sizes):
        raise MalformedError("the Matrix Market size line must hold rows, columns and, for coordinate, entries")
    rows, columns, *count = map(int, sizes)
    announced = count[0] if count else rows * columns if words[4] == b"general" else rows * (columns - 1) // 2
    # The shortest entries are "1 1 1\n" and "1\n"; the last line needs no end.
    if announced * (6 if coordinate else 2) > len(entries) + 1:
        raise MalformedError("the Matrix Market text has fewer entries than its size line says")
    check_size(8 * (rows + 1) if coordinate else 16 * rows * columns, limit)


def _from_npz(body: NDArray[np.uint8], limit: int) -> Matrix:
    """A sparse matrix as `scipy.sparse.save_npz` writes it; pickled objects are never loaded."""
    try:
        with zipfile.ZipFile(io.BytesIO(body.tobytes())) as archive:
            arrays = _members(archive, limit)
    except BacksolveError:
        raise
    except _NPZ_FAULTS:
        raise MalformedError("the .npz archive cannot be read: write it with scipy.sparse.save_npz") from None
    try:
        kind, shape = arrays["format"].item(), _npz_shape(arrays["shape"])
        kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
        return _npz_matrix(kind, arrays, shape, limit)
    except (KeyError, ValueError) as err:
        if isinstance(err, BacksolveError):
            raise
        raise MalformedError("the .npz archive lacks arrays that its format needs: use scipy.sparse.save_npz") from None


def _npz_matrix(kind: str, arrays: Mapping[str, Array], shape: Shape, limit: int) -> Matrix:
    check_size(8 * (shape[0] + 1), limit)
    data = native(arrays["data"], "A")
    if kind == "csr":
        return compressed(data, arrays["indices"], arrays["indptr"], shape)
    if data.ndim != 1:
        raise InvalidShapeError("the data of a .npz matrix must be a vector")
    if kind == "csc":
        return canonicalise(csc_array((data, _index(arrays["indices"]), _index(arrays["indptr"])), shape=shape)).matrix
    if kind == "coo":
        return canonicalise(coo_array((data, (_index(arrays["row"]), _index(arrays["col"]))), shape=shape)).matrix
    raise NotSupportedError("of .npz matrices csr, csc and coo are read: save A.tocsr()")


def _index(array: Array) -> Array:
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InvalidPatternError("indices must be vectors of integers")
    return array


def _npz_shape(array: Array) -> Shape:
    return read_shape(array.tolist())


def _members(archive: zipfile.ZipFile, limit: int) -> dict[str, Array]:
    """The arrays of an archive, never unpacking more than `limit` bytes."""
    infos = archive.infolist()
    names = [info.filename.removesuffix(".npy") for info in infos]
    if len(set(names)) != len(names) or not set(names) <= set(_NPZ_MEMBERS):
        raise MalformedError("the .npz archive holds arrays that no sparse matrix has: use scipy.sparse.save_npz")
    check_size(sum(info.file_size for info in infos), limit)
    return {name: _npy(archive, info) for name, info in zip(names, infos, strict=True)}


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    """One array; its header is believed only as far as the member's size goes."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(member)
        if dtype.kind not in "iufcbSU":
            raise InvalidDtypeError("the .npz archive holds objects or records: only numbers are read")
        data = member.read()
    if math.prod(shape) * dtype.itemsize != len(data):
        raise MalformedError("an array of the .npz archive is shorter or longer than it says")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if by_column else "C")


READERS: Mapping[str, Callable[[NDArray[np.uint8], int], Matrix]] = {
    MEDIA_TYPE: _from_safetensors,
    JSON: _from_json,
    "application/x-matrix-market": _from_matrix_market,
    "text/plain": _from_matrix_market,
    "application/x-npz": _from_npz,
    "application/zip": _from_npz,
}
"""How each media type is read."""


def describe(matrix: Matrix) -> dict[str, Any]:
    """What an upload was understood as."""
    return {
        "layout": matrix.pattern.layout,
        "shape": list(matrix.pattern.shape),
        "storage": matrix.pattern.storage,
        "nnz": matrix.pattern.nnz,
        "dtype": matrix.dtype.name,
        "batch": matrix.batch,
    }


def own(values: Array, body: NDArray[np.uint8]) -> Array:
    """The values, without keeping a much larger body alive for as long as they are cached."""
    return values if values.nbytes >= _WHOLE_BODY * body.size else values.copy()
