from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[Dtype]
    DTYPE_FLOAT32: _ClassVar[Dtype]
    DTYPE_FLOAT64: _ClassVar[Dtype]
    DTYPE_COMPLEX64: _ClassVar[Dtype]
    DTYPE_COMPLEX128: _ClassVar[Dtype]
    DTYPE_INT32: _ClassVar[Dtype]
    DTYPE_INT64: _ClassVar[Dtype]

class Trans(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANS_UNSPECIFIED: _ClassVar[Trans]
    TRANS_N: _ClassVar[Trans]
    TRANS_T: _ClassVar[Trans]
    TRANS_H: _ClassVar[Trans]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_MAX_ITER: _ClassVar[Status]
    STATUS_STAGNATION: _ClassVar[Status]
    STATUS_BREAKDOWN: _ClassVar[Status]
    STATUS_SINGULAR_STRUCTURAL: _ClassVar[Status]
    STATUS_SINGULAR_NUMERIC: _ClassVar[Status]
    STATUS_NOT_POSITIVE_DEFINITE: _ClassVar[Status]
    STATUS_ILL_CONDITIONED: _ClassVar[Status]
    STATUS_NONFINITE_INPUT: _ClassVar[Status]
    STATUS_INCONSISTENT: _ClassVar[Status]
    STATUS_OUT_OF_RANGE: _ClassVar[Status]
DTYPE_UNSPECIFIED: Dtype
DTYPE_FLOAT32: Dtype
DTYPE_FLOAT64: Dtype
DTYPE_COMPLEX64: Dtype
DTYPE_COMPLEX128: Dtype
DTYPE_INT32: Dtype
DTYPE_INT64: Dtype
TRANS_UNSPECIFIED: Trans
TRANS_N: Trans
TRANS_T: Trans
TRANS_H: Trans
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_MAX_ITER: Status
STATUS_STAGNATION: Status
STATUS_BREAKDOWN: Status
STATUS_SINGULAR_STRUCTURAL: Status
STATUS_SINGULAR_NUMERIC: Status
STATUS_NOT_POSITIVE_DEFINITE: Status
STATUS_ILL_CONDITIONED: Status
STATUS_NONFINITE_INPUT: Status
STATUS_INCONSISTENT: Status
STATUS_OUT_OF_RANGE: Status

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "nbytes", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: Dtype
    shape: _containers.RepeatedScalarFieldContainer[int]
    nbytes: int
    data: bytes
    def __init__(self, dtype: _Optional[_Union[Dtype, str]] = ..., shape: _Optional[_Iterable[int]] = ..., nbytes: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class MatrixRef(_message.Message):
    __slots__ = ("pattern", "values")
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    pattern: bytes
    values: bytes
    def __init__(self, pattern: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class Options(_message.Message):
    __slots__ = ("method", "preconditioner", "trans", "rtol", "atol", "maxiter", "refine", "restart", "precision", "ordering", "reuse", "recycle", "nullspace", "damp", "rcond", "condition")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONER_FIELD_NUMBER: _ClassVar[int]
    TRANS_FIELD_NUMBER: _ClassVar[int]
    RTOL_FIELD_NUMBER: _ClassVar[int]
    ATOL_FIELD_NUMBER: _ClassVar[int]
    MAXITER_FIELD_NUMBER: _ClassVar[int]
    REFINE_FIELD_NUMBER: _ClassVar[int]
    RESTART_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ORDERING_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    RECYCLE_FIELD_NUMBER: _ClassVar[int]
    NULLSPACE_FIELD_NUMBER: _ClassVar[int]
    DAMP_FIELD_NUMBER: _ClassVar[int]
    RCOND_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    method: str
    preconditioner: str
    trans: Trans
    rtol: float
    atol: float
    maxiter: int
    refine: int
    restart: int
    precision: str
    ordering: str
    reuse: str
    recycle: int
    nullspace: str
    damp: float
    rcond: float
    condition: bool
    def __init__(self, method: _Optional[str] = ..., preconditioner: _Optional[str] = ..., trans: _Optional[_Union[Trans, str]] = ..., rtol: _Optional[float] = ..., atol: _Optional[float] = ..., maxiter: _Optional[int] = ..., refine: _Optional[int] = ..., restart: _Optional[int] = ..., precision: _Optional[str] = ..., ordering: _Optional[str] = ..., reuse: _Optional[str] = ..., recycle: _Optional[int] = ..., nullspace: _Optional[str] = ..., damp: _Optional[float] = ..., rcond: _Optional[float] = ..., condition: bool = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "hash", "analyze", "factor", "solve")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    ANALYZE_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    SOLVE_FIELD_NUMBER: _ClassVar[int]
    queue: float
    hash: float
    analyze: float
    factor: float
    solve: float
    def __init__(self, queue: _Optional[float] = ..., hash: _Optional[float] = ..., analyze: _Optional[float] = ..., factor: _Optional[float] = ..., solve: _Optional[float] = ...) -> None: ...

class Element(_message.Message):
    __slots__ = ("status", "iterations", "relative_residual", "backward_error")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    status: Status
    iterations: int
    relative_residual: float
    backward_error: float
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., iterations: _Optional[int] = ..., relative_residual: _Optional[float] = ..., backward_error: _Optional[float] = ...) -> None: ...

class Certificate(_message.Message):
    __slots__ = ("status", "method", "reason", "precision", "iterations", "relative_residual", "backward_error", "condition_estimate", "symbolic_hit", "factor_hit", "seconds", "instance", "refinements", "elements", "preconditioner", "inverse_norm")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    CONDITION_ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    SYMBOLIC_HIT_FIELD_NUMBER: _ClassVar[int]
    FACTOR_HIT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REFINEMENTS_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONER_FIELD_NUMBER: _ClassVar[int]
    INVERSE_NORM_FIELD_NUMBER: _ClassVar[int]
    status: Status
    method: str
    reason: str
    precision: str
    iterations: int
    relative_residual: float
    backward_error: float
    condition_estimate: float
    symbolic_hit: bool
    factor_hit: bool
    seconds: Timings
    instance: str
    refinements: int
    elements: _containers.RepeatedCompositeFieldContainer[Element]
    preconditioner: str
    inverse_norm: float
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., method: _Optional[str] = ..., reason: _Optional[str] = ..., precision: _Optional[str] = ..., iterations: _Optional[int] = ..., relative_residual: _Optional[float] = ..., backward_error: _Optional[float] = ..., condition_estimate: _Optional[float] = ..., symbolic_hit: bool = ..., factor_hit: bool = ..., seconds: _Optional[_Union[Timings, _Mapping]] = ..., instance: _Optional[str] = ..., refinements: _Optional[int] = ..., elements: _Optional[_Iterable[_Union[Element, _Mapping]]] = ..., preconditioner: _Optional[str] = ..., inverse_norm: _Optional[float] = ...) -> None: ...
