"""Everything that can be set from outside: one frozen model, read once from `BACKSOLVE_*` and passed down."""

import difflib
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backsolve.config import MOST_PATH_BYTES

from .callers import read_tenants
from .machine import usable_cpus

PREFIX = "BACKSOLVE_"
GIB = 2**30

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", re.IGNORECASE)

_CLIENT_ONLY = frozenset({"BACKSOLVE_URL", "BACKSOLVE_CA_FILE", "BACKSOLVE_TIMEOUT"})

# What Kubernetes puts into every pod beside a Service called "backsolve" or "backsolve-something".
_SERVICE_LINK = re.compile(
    r"BACKSOLVE_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_LINK_PORT = re.compile(r"BACKSOLVE_(?:\w+_)?PORT")
_LINK_URL = re.compile(r"(?:tcp|udp|sctp)://", re.IGNORECASE)


class ConfigurationError(Exception):
    """The environment cannot be used; one line for each variable that is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def parse_size(value: object) -> object:
    """Bytes of a size such as 1048576, "512MB", "1.5 GiB" or "2Gi"; anything but text is returned as it is."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a size: write bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def format_size(count: int) -> str:
    """The shortest exact way to write `count` bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = _UNITS[unit[:2].upper()]
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _header_text(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token travels in a header: use printable ASCII without spaces")
    return value


def _device(value: str) -> str:
    if re.fullmatch(r"cpu|cuda(:\d+)?", value) is None:
        raise ValueError('no such device: write "cpu", "cuda" or "cuda:0"')
    return value


def _socket_path(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError("give an absolute path")
    if len(os.fsencode(value)) > MOST_PATH_BYTES:
        raise ValueError(f"the path of a Unix socket has at most {MOST_PATH_BYTES} bytes")
    return value


def _octal(value: object) -> object:
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"(0o?)?[0-7]{3}", value) is None:
        raise ValueError("not permissions: write three octal digits, such as 0600 or 0660")
    return int(value[-3:], 8)


def _instance(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", value) is None:
        raise ValueError("use at most 128 letters, digits and . _ : -")
    return value


def _new_instance() -> str:
    # A restarted replica holds nothing of what its namesake held, so the name differs each time.
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
SocketPath = Annotated[Path, AfterValidator(_socket_path)]
Mode = Annotated[int, BeforeValidator(_octal)]
Device = Annotated[str, AfterValidator(_device)]
Instance = Annotated[str, AfterValidator(_instance)]
Token = Annotated[SecretStr, AfterValidator(_header_text)]


class Settings(BaseSettings):
    """The service's settings; the field `http_port` is read from `BACKSOLVE_HTTP_PORT`, and so on.

    An empty variable counts as not set. Use `load`, which also refuses names that do not exist.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    host: str = Field(default="127.0.0.1", description="address to listen on; beyond loopback needs credentials")
    http_port: Port = Field(default=8080, description="port of REST and /metrics; 0 picks a free one")
    grpc_port: Port = Field(default=50051, description="port of gRPC; 0 picks a free one")
    unix_http: SocketPath | None = Field(default=None, description="path of a Unix socket for REST, without TLS")
    unix_grpc: SocketPath | None = Field(default=None, description="path of a Unix socket for gRPC, without TLS")
    unix_shared: SocketPath | None = Field(
        default=None, description="path of a Unix socket over which callers share memory; unset: none is shared"
    )
    unix_mode: Mode = Field(
        default=0o600, description="permissions of the Unix sockets in octal: who may write there, may call"
    )
    shared_bytes: Size = Field(default=4 * GIB, description="memory that all callers may share with the service")
    shared_client_bytes: Size = Field(default=GIB, description="memory that one caller may share")
    shared_regions: int = Field(default=256, ge=1, le=65536, description="pieces of memory that all callers may share")
    shared_client_regions: int = Field(default=16, ge=1, le=4096, description="pieces of memory that one may share")
    device: Device = Field(default="cpu", description='where methods run that can: "cpu" or "cuda:0"')
    workers: int = Field(
        default_factory=usable_cpus, ge=1, le=1024, description="threads that factorize and solve on the CPU"
    )
    processes: int = Field(
        default=1, ge=1, le=1024, description="processes for methods that need one; started when one is asked for"
    )
    stuck_seconds: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="time after which a process is killed that works on for nobody",
    )
    cache_bytes: Size = Field(default=2 * GIB, description="budget for matrices and factors in the host's memory")
    device_cache_bytes: Size | None = Field(
        default=None, description="budget for factors on the device; those that do not fit move to the host, or go"
    )
    max_payload_bytes: Size = Field(default=GIB, description="largest call that is accepted")
    queue_depth: int = Field(default=128, ge=1, le=4096, description="calls that may wait for a worker")
    queue_bytes: Size = Field(
        default=2 * GIB,
        description="payload and vectors of iterations that may wait for or be with a worker; a larger call goes alone",
    )
    block_columns: int | None = Field(
        default=None, ge=1, le=4096, description="most right-hand sides of several calls solved as one; 1: each alone"
    )
    token: Token | None = Field(
        default=None, description="bearer token that every call must bring (health checks need none)"
    )
    tenants: FilePath | None = Field(
        default=None,
        description='file of lines "name token": each token is of a tenant with a cache and a share of the workers',
    )
    tls_cert: FilePath | None = Field(default=None, description="PEM certificate chain; serves https and grpcs")
    tls_key: FilePath | None = Field(default=None, description="PEM private key of BACKSOLVE_TLS_CERT")
    tls_client_ca: FilePath | None = Field(
        default=None, description="PEM authorities; callers must show a certificate of one"
    )
    allow_anonymous: bool = Field(default=False, description="let anybody who reaches a non-loopback BACKSOLVE_HOST in")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe line that is logged"
    )
    drain_seconds: float = Field(
        default=25.0, ge=0, le=3600, allow_inf_nan=False, description="time that running calls have after SIGTERM"
    )
    instance: Instance = Field(
        default_factory=_new_instance,
        description="name of this replica in replies and logs",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("BACKSOLVE_TLS_CERT and BACKSOLVE_TLS_KEY belong together: set both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("BACKSOLVE_TLS_CLIENT_CA needs BACKSOLVE_TLS_CERT and BACKSOLVE_TLS_KEY")
        paths = [path for path in (self.unix_http, self.unix_grpc, self.unix_shared) if path is not None]
        if len(set(paths)) < len(paths):
            raise ValueError("two of BACKSOLVE_UNIX_HTTP, _GRPC and _SHARED are the same: choose different paths")
        try:
            tokens = {} if self.tenants is None else read_tenants(self.tenants)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError("BACKSOLVE_TENANTS names a file that cannot be read") from error
        except ValueError as error:
            raise ValueError(f"BACKSOLVE_TENANTS: {error}") from None
        if self.token is not None and self.token.get_secret_value() in tokens:
            raise ValueError("BACKSOLVE_TOKEN is also a token of BACKSOLVE_TENANTS: a token stands for one tenant")
        if not (_is_loopback(self.host) or self.token or tokens or self.tls_client_ca or self.allow_anonymous):
            raise ValueError(
                "BACKSOLVE_HOST lies beyond loopback and callers need no credentials: set BACKSOLVE_TOKEN or "
                "BACKSOLVE_TENANTS (or the three BACKSOLVE_TLS_*), or BACKSOLVE_ALLOW_ANONYMOUS=1 if everybody who "
                "reaches it may solve"
            )
        return self


VARIABLES: Mapping[str, str] = {PREFIX + name.upper(): name for name in Settings.model_fields}
"""Environment variable → field."""


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: a variable has no possible value, or does not exist.
    """
    lines = [_unknown(name) for name in sorted(os.environ) if _is_unknown(name, os.environ[name])]
    try:
        settings = Settings()
    except ValidationError as err:
        # The cause would be shown in a trace together with every value, secrets included.
        raise ConfigurationError(lines + _explain(err)) from None
    if lines:
        raise ConfigurationError(lines)
    return settings


def _is_unknown(name: str, value: str) -> bool:
    upper = name.upper()
    if not upper.startswith(PREFIX) or upper in VARIABLES or upper in _CLIENT_ONLY:
        return False
    if _SERVICE_LINK.fullmatch(upper):
        return False
    return not (_SERVICE_LINK_PORT.fullmatch(upper) and _LINK_URL.match(value))


def _unknown(name: str) -> str:
    words = [known.upper() for known in VARIABLES.values()]
    nearest = difflib.get_close_matches(name.upper().removeprefix(PREFIX), words, n=1, cutoff=0)[0]
    return f"{name}: there is no such setting; the nearest is {PREFIX}{nearest} (backsolve-service --help lists all)"


def _explain(err: ValidationError) -> list[str]:
    lines = []
    for item in err.errors(include_url=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            lines.append(message)
            continue
        variable = PREFIX + str(item["loc"][0]).upper()
        value = item["input"]
        if variable == "BACKSOLVE_TOKEN":
            lines.append(f"{variable}: {message}")
        elif isinstance(value, str) and _LINK_URL.match(value):
            lines.append(
                f"{variable}={value!r}: Kubernetes set this for a Service of that name: "
                "set enableServiceLinks: false in the pod, or name the Service otherwise"
            )
        else:
            lines.append(f"{variable}={value!r}: {message[:1].lower()}{message[1:]}")
    return lines


_UNSET = {
    "device_cache_bytes": "3/4 of what is free there at the start",
    "block_columns": "as many as the method gains by",
}
"""What happens where nothing is set, of fields for which that is no plain "none"."""


def describe() -> str:
    """Every variable with its default and its meaning, one a line."""
    lines = []
    for variable, name in VARIABLES.items():
        field = Settings.model_fields[name]
        if name in {"cache_bytes", "max_payload_bytes", "queue_bytes", "shared_bytes", "shared_client_bytes"}:
            default = format_size(field.default)
        elif name == "unix_mode":
            default = f"{field.default:04o}"
        elif field.default_factory is not None:
            default = {"workers": "usable CPUs", "instance": "host name and a random part"}[name]
        else:
            default = {None: _UNSET.get(name, "none"), False: "0"}.get(field.default, str(field.default))
        lines.append(f"  {variable:<28} {field.description} [{default}]")
    return "\n".join(lines)
