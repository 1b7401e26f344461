"""The binding of cuDSS against the library itself: its headers, and what it does without a device."""

import ctypes
import re
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p

import numpy as np
import pytest
import torch

from backsolve_service.engine.direct.cudss import library
from backsolve_service.engine.direct.cudss.constants import ENUMS, Config, CudaType, MatrixType, SolveMode
from backsolve_service.engine.direct.cudss.handles import Dense, Sparse

FOUND = library.find()

pytestmark = pytest.mark.skipif(FOUND is None, reason=f"the package {library.PACKAGE!r} is not installed")

WORDS = {
    "int": c_int,
    "size_t": c_size_t,
    "int64_t": c_int64,
    "libraryPropertyType": c_int,
    "cudaDataType_t": c_int,
    **dict.fromkeys(ENUMS, c_int),
}
"""What stands for a parameter of the header that is no pointer; whatever else is opaque is one."""


def header(name: str) -> str:
    text = (FOUND.parent.parent / "include" / name).read_text()
    return re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.S)


def enumeration(name: str) -> dict[str, int]:
    """The members of an enumeration of the header with their values."""
    body = re.search(r"typedef enum " + name + r"\s*\{(.*?)\}", header("cudss_data_types.h"), re.S)[1]
    values: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in body.split(","))):
        member, _, expression = (part.strip() for part in item.partition("="))
        values[member] = eval(expression, {}, values) if expression else max(values.values(), default=-1) + 1
    return values


def parameters(function: str) -> list[object]:
    """The parameters of a function of the header, as ctypes."""
    text = re.search(r"cudssStatus_t CUDSSAPI " + function + r"\((.*?)\)", header("cudss.h"), re.S)[1]
    found: list[object] = []
    for parameter in text.split(","):
        words = parameter.replace("*", " * ").replace("const", " ").split()
        found.append(c_void_p if "*" in words else WORDS.get(words[0], c_void_p))
    return found


@pytest.mark.parametrize("name", ENUMS)
def test_every_number_is_the_header_s(name):
    theirs = enumeration(name)
    assert {member.name: member.value for member in ENUMS[name]}.items() <= theirs.items()


@pytest.mark.parametrize("name", library.SIGNATURES)
def test_every_signature_is_the_header_s(name):
    ours = [c_void_p if hasattr(p, "contents") else p for p in library.SIGNATURES[name]]
    assert ours == parameters(name)


def test_the_types_of_numbers_are_cuda_s():
    file = FOUND.parent.parent / "include" / "library_types.h"
    if not file.exists():
        pytest.skip("the headers of the CUDA runtime are not installed")
    for member in CudaType:
        assert re.search(rf"{member.name}\s*=\s*(\d+)", file.read_text())[1] == str(member.value)


@pytest.fixture(scope="module")
def cudss():
    return library.load()


def test_the_library_loads_and_is_new_enough(cudss):
    value = c_int()
    assert cudss.cudssGetProperty(0, byref(value)) == 0
    assert value.value >= 1


@pytest.mark.parametrize("name", Config)
@pytest.mark.parametrize("value", [0, 1])
def test_every_setting_is_an_int_that_the_library_takes_and_returns(cudss, name, value):
    settings = c_void_p()
    assert cudss.cudssConfigCreate(byref(settings)) == 0
    given, got, written = c_int(max(value, name is Config.CUDSS_CONFIG_UBATCH_SIZE)), c_int(-7), c_size_t()
    assert cudss.cudssConfigSet(settings, name, byref(given), ctypes.sizeof(given)) == 0
    assert cudss.cudssConfigGet(settings, c_int(name), byref(got), c_size_t(4), byref(written)) == 0
    assert (got.value, written.value) == (given.value, 4)
    assert cudss.cudssConfigSet(settings, name, byref(given), 2) != 0
    assert cudss.cudssConfigDestroy(settings) == 0


def test_every_solve_mode_is_taken(cudss):
    settings = c_void_p()
    cudss.cudssConfigCreate(byref(settings))
    for mode in SolveMode:
        assert cudss.cudssConfigSet(settings, Config.CUDSS_CONFIG_SOLVE_MODE, byref(c_int(mode)), 4) == 0
    cudss.cudssConfigDestroy(settings)


class Place:
    """As much of a handle as a description needs."""

    device = "cpu"

    def __init__(self, loaded):
        self.library = loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", MatrixType)
def test_a_matrix_is_described_as_it_is(cudss, dtype, index, kind):
    indptr, indices = torch.tensor([0, 2, 3], dtype=index), torch.tensor([0, 1, 1], dtype=index)
    values = torch.ones(3, dtype=dtype)
    made = Sparse(Place(cudss), indptr, indices, values, kind)
    sizes, pointers, kinds = [c_int64() for _ in range(3)], [c_void_p() for _ in range(4)], [c_int() for _ in range(6)]
    assert cudss.cudssMatrixGetCsr(made.pointer, *(byref(each) for each in (*sizes, *pointers, *kinds))) == 0
    assert [each.value for each in sizes] == [2, 2, 3]
    assert [each.value for each in pointers] == [indptr.data_ptr(), None, indices.data_ptr(), values.data_ptr()]
    at = {torch.int32: 10, torch.int64: 24}[index]
    number = {torch.float32: 0, torch.float64: 1, torch.complex64: 4, torch.complex128: 5}[dtype]
    assert [each.value for each in kinds] == [at, at, number, kind, int(kind != 0), 0]


def test_columns_are_described_as_they_lie(cudss):
    rows = torch.from_numpy(np.arange(6.0).reshape(2, 3))
    made = Dense(Place(cudss), rows)
    sizes, pointer, kinds = [c_int64() for _ in range(3)], c_void_p(), [c_int(), c_int()]
    assert cudss.cudssMatrixGetDn(made.pointer, *(byref(each) for each in (*sizes, pointer, *kinds))) == 0
    assert [each.value for each in sizes] == [3, 2, 3]
    assert pointer.value == rows.data_ptr()
    assert [each.value for each in kinds] == [1, 0]
