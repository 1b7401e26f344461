from backsolve.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Holding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOLDING_UNSPECIFIED: _ClassVar[Holding]
    HOLDING_ABSENT: _ClassVar[Holding]
    HOLDING_PATTERN: _ClassVar[Holding]
    HOLDING_VALUES: _ClassVar[Holding]
    HOLDING_FACTOR: _ClassVar[Holding]

class Want(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WANT_UNSPECIFIED: _ClassVar[Want]
    WANT_B: _ClassVar[Want]
    WANT_VALUES: _ClassVar[Want]

class Layout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LAYOUT_UNSPECIFIED: _ClassVar[Layout]
    LAYOUT_CSR: _ClassVar[Layout]
    LAYOUT_DENSE: _ClassVar[Layout]
    LAYOUT_STRUCTURED: _ClassVar[Layout]

class Storage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORAGE_UNSPECIFIED: _ClassVar[Storage]
    STORAGE_HERMITIAN: _ClassVar[Storage]
    STORAGE_LOWER: _ClassVar[Storage]
HOLDING_UNSPECIFIED: Holding
HOLDING_ABSENT: Holding
HOLDING_PATTERN: Holding
HOLDING_VALUES: Holding
HOLDING_FACTOR: Holding
WANT_UNSPECIFIED: Want
WANT_B: Want
WANT_VALUES: Want
LAYOUT_UNSPECIFIED: Layout
LAYOUT_CSR: Layout
LAYOUT_DENSE: Layout
LAYOUT_STRUCTURED: Layout
STORAGE_UNSPECIFIED: Storage
STORAGE_HERMITIAN: Storage
STORAGE_LOWER: Storage

class SolveRequest(_message.Message):
    __slots__ = ("matrix", "options", "rhs", "x0", "values")
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    RHS_FIELD_NUMBER: _ClassVar[int]
    X0_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    options: _types_pb2.Options
    rhs: _types_pb2.Tensor
    x0: _types_pb2.Tensor
    values: _types_pb2.Tensor
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ..., options: _Optional[_Union[_types_pb2.Options, _Mapping]] = ..., rhs: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., x0: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., values: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...

class SolveResponse(_message.Message):
    __slots__ = ("x", "certificate")
    X_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    x: _types_pb2.Tensor
    certificate: _types_pb2.Certificate
    def __init__(self, x: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., certificate: _Optional[_Union[_types_pb2.Certificate, _Mapping]] = ...) -> None: ...

class VjpRequest(_message.Message):
    __slots__ = ("matrix", "options", "cotangent", "x", "want")
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    COTANGENT_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    options: _types_pb2.Options
    cotangent: _types_pb2.Tensor
    x: _types_pb2.Tensor
    want: _containers.RepeatedScalarFieldContainer[Want]
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ..., options: _Optional[_Union[_types_pb2.Options, _Mapping]] = ..., cotangent: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., x: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., want: _Optional[_Iterable[_Union[Want, str]]] = ...) -> None: ...

class VjpResponse(_message.Message):
    __slots__ = ("b", "values", "certificate")
    B_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    b: _types_pb2.Tensor
    values: _types_pb2.Tensor
    certificate: _types_pb2.Certificate
    def __init__(self, b: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., values: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., certificate: _Optional[_Union[_types_pb2.Certificate, _Mapping]] = ...) -> None: ...

class JvpRequest(_message.Message):
    __slots__ = ("matrix", "options", "x", "b_tangent", "values_tangent")
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    X_FIELD_NUMBER: _ClassVar[int]
    B_TANGENT_FIELD_NUMBER: _ClassVar[int]
    VALUES_TANGENT_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    options: _types_pb2.Options
    x: _types_pb2.Tensor
    b_tangent: _types_pb2.Tensor
    values_tangent: _types_pb2.Tensor
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ..., options: _Optional[_Union[_types_pb2.Options, _Mapping]] = ..., x: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., b_tangent: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., values_tangent: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...

class JvpResponse(_message.Message):
    __slots__ = ("x", "certificate")
    X_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    x: _types_pb2.Tensor
    certificate: _types_pb2.Certificate
    def __init__(self, x: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., certificate: _Optional[_Union[_types_pb2.Certificate, _Mapping]] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("matrix", "layout", "n", "values_only", "indptr", "indices", "values", "columns", "kind", "dims", "base", "storage")
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    VALUES_ONLY_FIELD_NUMBER: _ClassVar[int]
    INDPTR_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DIMS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    layout: Layout
    n: int
    values_only: bool
    indptr: _types_pb2.Tensor
    indices: _types_pb2.Tensor
    values: _types_pb2.Tensor
    columns: int
    kind: str
    dims: _containers.RepeatedScalarFieldContainer[int]
    base: _types_pb2.MatrixRef
    storage: Storage
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ..., layout: _Optional[_Union[Layout, str]] = ..., n: _Optional[int] = ..., values_only: bool = ..., indptr: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., indices: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., values: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., columns: _Optional[int] = ..., kind: _Optional[str] = ..., dims: _Optional[_Iterable[int]] = ..., base: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ..., storage: _Optional[_Union[Storage, str]] = ...) -> None: ...

class PutResponse(_message.Message):
    __slots__ = ("matrix",)
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ...) -> None: ...

class FindRequest(_message.Message):
    __slots__ = ("matrices",)
    MATRICES_FIELD_NUMBER: _ClassVar[int]
    matrices: _containers.RepeatedCompositeFieldContainer[_types_pb2.MatrixRef]
    def __init__(self, matrices: _Optional[_Iterable[_Union[_types_pb2.MatrixRef, _Mapping]]] = ...) -> None: ...

class FindResponse(_message.Message):
    __slots__ = ("holdings",)
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    holdings: _containers.RepeatedScalarFieldContainer[Holding]
    def __init__(self, holdings: _Optional[_Iterable[_Union[Holding, str]]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("matrix",)
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    matrix: _types_pb2.MatrixRef
    def __init__(self, matrix: _Optional[_Union[_types_pb2.MatrixRef, _Mapping]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ready(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("tensor", "offset", "data")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    offset: int
    data: bytes
    def __init__(self, tensor: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ElementsPart(_message.Message):
    __slots__ = ("elements",)
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[_types_pb2.Element]
    def __init__(self, elements: _Optional[_Iterable[_Union[_types_pb2.Element, _Mapping]]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("solve", "vjp", "jvp", "put", "ready", "chunk", "solved", "pulled", "pushed", "elements")
    SOLVE_FIELD_NUMBER: _ClassVar[int]
    VJP_FIELD_NUMBER: _ClassVar[int]
    JVP_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SOLVED_FIELD_NUMBER: _ClassVar[int]
    PULLED_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    solve: SolveRequest
    vjp: VjpRequest
    jvp: JvpRequest
    put: PutRequest
    ready: Ready
    chunk: Chunk
    solved: SolveResponse
    pulled: VjpResponse
    pushed: JvpResponse
    elements: ElementsPart
    def __init__(self, solve: _Optional[_Union[SolveRequest, _Mapping]] = ..., vjp: _Optional[_Union[VjpRequest, _Mapping]] = ..., jvp: _Optional[_Union[JvpRequest, _Mapping]] = ..., put: _Optional[_Union[PutRequest, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., solved: _Optional[_Union[SolveResponse, _Mapping]] = ..., pulled: _Optional[_Union[VjpResponse, _Mapping]] = ..., pushed: _Optional[_Union[JvpResponse, _Mapping]] = ..., elements: _Optional[_Union[ElementsPart, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_message_bytes", "max_payload_bytes")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    max_payload_bytes: int
    def __init__(self, max_message_bytes: _Optional[int] = ..., max_payload_bytes: _Optional[int] = ...) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "api_versions", "digest_version", "instance", "device", "dtypes", "methods", "preconditioners", "limits", "extensions", "http_port", "grpc_port", "versions", "unix_http", "unix_grpc", "unix_shared")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    PRECONDITIONERS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    UNIX_HTTP_FIELD_NUMBER: _ClassVar[int]
    UNIX_GRPC_FIELD_NUMBER: _ClassVar[int]
    UNIX_SHARED_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_versions: _containers.RepeatedScalarFieldContainer[str]
    digest_version: int
    instance: str
    device: str
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    preconditioners: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    extensions: _containers.RepeatedScalarFieldContainer[str]
    http_port: int
    grpc_port: int
    versions: _containers.ScalarMap[str, str]
    unix_http: str
    unix_grpc: str
    unix_shared: str
    def __init__(self, version: _Optional[str] = ..., api_versions: _Optional[_Iterable[str]] = ..., digest_version: _Optional[int] = ..., instance: _Optional[str] = ..., device: _Optional[str] = ..., dtypes: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., preconditioners: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., extensions: _Optional[_Iterable[str]] = ..., http_port: _Optional[int] = ..., grpc_port: _Optional[int] = ..., versions: _Optional[_Mapping[str, str]] = ..., unix_http: _Optional[str] = ..., unix_grpc: _Optional[str] = ..., unix_shared: _Optional[str] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("counters",)
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    counters: _containers.ScalarMap[str, float]
    def __init__(self, counters: _Optional[_Mapping[str, float]] = ...) -> None: ...
