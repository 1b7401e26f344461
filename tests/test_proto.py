"""The committed protobuf code is what `proto/` says, and the shared enumerations are the same on both sides."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from backsolve.types import DTYPES, TRANS, ErrorCode, Holding, Status
from backsolve.v1 import errors_pb2, solver_pb2, types_pb2

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def generate_proto() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_proto", ROOT / "scripts" / "generate_proto.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh(generate_proto, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("v1")
    generate_proto.generate(target, generate_proto.generator())
    return target


def test_committed_code_is_fresh(generate_proto, fresh):
    assert generate_proto.differences(generate_proto.TARGET, fresh) == []


def test_a_changed_file_a_missing_one_and_one_too_many_are_noticed(generate_proto, fresh, tmp_path):
    committed = tmp_path / "v1"
    shutil.copytree(fresh, committed)
    (committed / "types_pb2.py").write_text((committed / "types_pb2.py").read_text() + "# stale\n")
    (committed / "errors_pb2.pyi").unlink()
    (committed / "old_pb2.py").write_text("# gone from proto/\n")
    changed = {line.split("/")[1] for line in generate_proto.differences(committed, fresh) if line.startswith("--- ")}
    assert changed == {"types_pb2.py", "errors_pb2.pyi", "old_pb2.py"}


@pytest.mark.parametrize(
    ("ours", "wire", "prefix"),
    [
        (ErrorCode, errors_pb2.ErrorCode, "ERROR_CODE_"),
        (Status, types_pb2.Status, "STATUS_"),
        (Holding, solver_pb2.Holding, "HOLDING_"),
    ],
    ids=["ErrorCode", "Status", "Holding"],
)
def test_enumerations_are_equal_by_name_and_number(ours, wire, prefix):
    expected = {f"{prefix}{member.name}": member.value for member in ours} | {f"{prefix}UNSPECIFIED": 0}
    assert dict(wire.items()) == expected


def test_every_trans_and_element_type_has_a_number():
    assert set(types_pb2.Trans.keys()) == {"TRANS_UNSPECIFIED", *(f"TRANS_{trans}" for trans in TRANS)}
    solvable = {f"DTYPE_{dtype.name.upper()}" for dtype in DTYPES}
    assert set(types_pb2.Dtype.keys()) == {"DTYPE_UNSPECIFIED", "DTYPE_INT32", "DTYPE_INT64", *solvable}


def test_importing_the_generated_code_warns_of_nothing(tmp_path):
    import subprocess

    code = "import backsolve.v1.solver_pb2_grpc, backsolve.v1.errors_pb2"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
