#!/bin/bash
# Builds the service's image from the Dockerfile with buildah.
# Usage: build_image.sh [cpu|cuda] [tag]
#   BASE           base image (default: a Debian 12 with Python that engine.sh makes)
#   TORCH_INDEX    PyTorch index for the CPU image, TORCH_CUDA_INDEX for the CUDA image
#   PIP_FIND_LINKS a local folder of wheels (CPU image only); it is mounted while building and leaves no trace
#   PIP_CERT, PIP_INDEX_URL, PIP_DEFAULT_TIMEOUT    as pip knows them, for the build alone
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/ci/engine.sh
source "$here/engine.sh"

target=${1:-cpu}
tag=${2:-localhost/backsolve:$target}
engine_configure
engine_lock
engine_install

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pip's settings travel as a build secret: neither an image nor its history shows them.
mounts=()
{
    echo "[global]"
    [ -z "${PIP_INDEX_URL:-}" ] || echo "index-url = $PIP_INDEX_URL"
    [ -z "${PIP_DEFAULT_TIMEOUT:-}" ] || echo "timeout = $PIP_DEFAULT_TIMEOUT"
    if [ -n "${PIP_CERT:-}" ]; then
        echo "cert = /run/build/ca.crt"
        mounts+=(--volume "$PIP_CERT:/run/build/ca.crt:ro")
    fi
    # A folder of CPU wheels would give the CUDA image a torch without CUDA.
    if [ "$target" = cpu ] && [ -d "${PIP_FIND_LINKS:-}" ]; then
        echo "find-links = /run/build/wheels"
        mounts+=(--volume "$PIP_FIND_LINKS:/run/build/wheels:ro")
    fi
} >"$work/pip.conf"

if [ -z "${BASE:-}" ]; then
    engine_base_image
    BASE=$BASE_IMAGE
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/service/pyproject.toml")
revision=$(git -C "$root" rev-parse --verify --quiet HEAD || echo unknown)
say "building $tag"
nice -n 10 buildah build --isolation chroot --format docker --network host --target "$target" --tag "$tag" \
    --build-arg BASE="$BASE" --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --build-arg TORCH_INDEX="${TORCH_INDEX:-}" --build-arg TORCH_CUDA_INDEX="${TORCH_CUDA_INDEX:-}" \
    --secret id=pip.conf,src="$work/pip.conf" "${mounts[@]}" "$root"
# Stages and the image that had the tag before; nothing is built from them again.
podman image prune --force >/dev/null
