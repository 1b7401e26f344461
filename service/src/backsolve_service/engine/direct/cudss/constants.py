"""The numbers of `cudss.h` and `library_types.h` that are used here; a test compares them with the headers."""

from enum import IntEnum
from typing import final

VERSION = (1, 0)
"""Oldest release that works: transposed solves came with it, and `cudssMatrixCreateCsr` has another
signature before."""


@final
class CudaType(IntEnum):
    """`cudaDataType_t`."""

    CUDA_R_32F = 0
    CUDA_R_64F = 1
    CUDA_C_32F = 4
    CUDA_C_64F = 5
    CUDA_R_32I = 10
    CUDA_R_64I = 24


@final
class Property(IntEnum):
    """`libraryPropertyType_t`."""

    MAJOR_VERSION = 0
    MINOR_VERSION = 1
    PATCH_LEVEL = 2


@final
class CudssStatus(IntEnum):
    """`cudssStatus_t`."""

    CUDSS_STATUS_SUCCESS = 0
    CUDSS_STATUS_NOT_INITIALIZED = 1
    CUDSS_STATUS_ALLOC_FAILED = 2
    CUDSS_STATUS_INVALID_VALUE = 3
    CUDSS_STATUS_NOT_SUPPORTED = 4
    CUDSS_STATUS_EXECUTION_FAILED = 5
    CUDSS_STATUS_INTERNAL_ERROR = 6
    CUDSS_STATUS_IR_FAILED = 7


@final
class Config(IntEnum):
    """`cudssConfigParam_t`; each is an int."""

    CUDSS_CONFIG_MATCHING_ALG = 3
    CUDSS_CONFIG_SOLVE_MODE = 4
    CUDSS_CONFIG_HYBRID_MEMORY_MODE = 11
    CUDSS_CONFIG_UBATCH_SIZE = 18


@final
class Data(IntEnum):
    """`cudssDataParam_t`."""

    CUDSS_DATA_INFO = 0
    CUDSS_DATA_LU_NNZ = 1
    CUDSS_DATA_NPIVOTS = 2
    CUDSS_DATA_PERM_REORDER_ROW = 4
    CUDSS_DATA_USER_PERM = 9
    CUDSS_DATA_MEMORY_ESTIMATES = 13


@final
class Phase(IntEnum):
    """`cudssPhase_t`; composite phases are sums."""

    CUDSS_PHASE_REORDERING = 1
    CUDSS_PHASE_ANALYSIS = 3
    CUDSS_PHASE_FACTORIZATION = 4
    CUDSS_PHASE_REFACTORIZATION = 8
    CUDSS_PHASE_SOLVE = 1008


@final
class MatrixType(IntEnum):
    """`cudssMatrixType_t`."""

    CUDSS_MTYPE_GENERAL = 0
    CUDSS_MTYPE_SYMMETRIC = 1
    CUDSS_MTYPE_HERMITIAN = 2
    CUDSS_MTYPE_SPD = 3
    CUDSS_MTYPE_HPD = 4


@final
class View(IntEnum):
    """`cudssMatrixViewType_t`."""

    CUDSS_MVIEW_FULL = 0
    CUDSS_MVIEW_LOWER = 1


@final
class Base(IntEnum):
    """`cudssIndexBase_t`."""

    CUDSS_BASE_ZERO = 0


@final
class DenseLayout(IntEnum):
    """`cudssLayout_t`."""

    CUDSS_LAYOUT_COL_MAJOR = 0


@final
class Matching(IntEnum):
    """`cudssMatchingAlg_t`."""

    CUDSS_MATCHING_ALG_NONE = 0
    CUDSS_MATCHING_ALG_AUTO = 6


@final
class SolveMode(IntEnum):
    """`cudssSolveMode_t`."""

    CUDSS_SOLVE_MODE_NORMAL = 0
    CUDSS_SOLVE_MODE_TRANSPOSE = 1
    CUDSS_SOLVE_MODE_CONJUGATE_TRANSPOSE = 2


ENUMS: dict[str, type[IntEnum]] = {
    "cudssStatus_t": CudssStatus,
    "cudssConfigParam_t": Config,
    "cudssDataParam_t": Data,
    "cudssPhase_t": Phase,
    "cudssMatrixType_t": MatrixType,
    "cudssMatrixViewType_t": View,
    "cudssIndexBase_t": Base,
    "cudssLayout_t": DenseLayout,
    "cudssMatchingAlg_t": Matching,
    "cudssSolveMode_t": SolveMode,
}
"""Name in `cudss_data_types.h` → what stands for it here."""
