"""Generate `backsolve.v1` from `proto/`, or with `--check` say whether the committed code is fresh.

The generator is pinned: code from grpcio-tools 1.74.0 runs with every grpcio >= 1.74 and protobuf
>= 6.31.1, < 8. It cannot share an environment with newer protobuf releases, so where the running
interpreter lacks it, it gets an environment of its own under `build/`.
"""

import argparse
import difflib
import importlib.metadata
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "client" / "src" / "backsolve" / "v1"
TOOLS_VERSION = "1.74.0"
TOOLS = (f"grpcio-tools=={TOOLS_VERSION}", f"grpcio=={TOOLS_VERSION}", "protobuf==6.31.1")
PACKAGE_DOC = '"""Generated from `proto/backsolve/v1`; run `scripts/generate_proto.py` instead of editing."""\n'


def generator() -> Path:
    """An interpreter that has the pinned generator, made if there is none yet."""
    try:
        if importlib.metadata.version("grpcio-tools") == TOOLS_VERSION:
            return Path(sys.executable)
    except importlib.metadata.PackageNotFoundError:
        pass
    home = ROOT / "build" / f"grpcio-tools-{TOOLS_VERSION}"
    python = home / "bin" / "python"
    complete = home / "complete"
    if not complete.exists():
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS], check=True)
        complete.touch()
    return python


def generate(target: Path, python: Path) -> None:
    """Write the whole package `backsolve.v1` to `target`."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("backsolve/v1/*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = [f"--python_out={scratch}", f"--pyi_out={scratch}", f"--grpc_python_out={scratch}"]
        subprocess.run([python, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *out, *sources], check=True)
        made = Path(scratch) / "backsolve" / "v1"
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*_pb2*"):
            old.unlink()
        for file in sorted(made.iterdir()):
            # Only files with a service have RPC code worth keeping.
            if not file.name.endswith("_pb2_grpc.py") or "class " in file.read_text():
                (target / file.name).write_text(file.read_text())
        (target / "__init__.py").write_text(PACKAGE_DOC)


def differences(committed: Path, fresh: Path) -> list[str]:
    """Unified diff of two generated packages; empty when they are equal."""
    names = {path.name for folder in (committed, fresh) for path in folder.glob("*.py*") if path.is_file()}
    lines: list[str] = []
    for name in sorted(names):
        old, new = ((f / name).read_text().splitlines() if (f / name).exists() else [] for f in (committed, fresh))
        lines += difflib.unified_diff(old, new, f"committed/{name}", f"fresh/{name}", lineterm="", n=1)
    return lines


def main(argv: list[str] | None = None) -> int:
    """Generate, or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the committed code is stale")
    python = generator()
    if not parser.parse_args(argv).check:
        generate(TARGET, python)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch), python)
        stale = differences(TARGET, Path(scratch))
    if stale:
        print("\n".join(stale[:60]))
        print("backsolve.v1 is stale: run scripts/generate_proto.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
