#!/bin/bash
# Builds the image, brings the stack up with docker compose, and runs the tests marked `containers` against it.
# Everything that runs lives in namespaces of its own (mounts, network, processes): host ports are not touched, and
# nothing is left behind even if a test is killed.
# Usage: compose_e2e.sh [python with the client and pytest]      SOLVER_IMAGE=...: test that image instead of building one
#        TESTS=tests/deploy/test_same_host_up.py: these tests alone
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=deploy/ci/engine.sh
source "$here/engine.sh"

inside() {
    engine_configure
    # crun refuses a mix of cgroup versions; the second one disappears in this mount namespace only.
    ! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified
    ip link set lo up
    podman system service --time 0 "unix://$ENGINE_CACHE/podman.sock" 2>"$ENGINE_CACHE/podman.log" &
    export DOCKER_HOST=unix://$ENGINE_CACHE/podman.sock CONTAINER_TESTS=1
    cd "$root"
    "$PYTHON" -m pytest -m containers -p no:cacheprovider "${TESTS:-tests/deploy}"
}

if [ "${1:-}" = --inside ]; then
    inside
    exit
fi

PYTHON=$(realpath -s "$(command -v "${1:-python3}")") || die "no such Python: ${1:-python3}"
engine_configure
engine_lock
engine_install
if [ -z "${SOLVER_IMAGE:-}" ]; then
    SOLVER_IMAGE=localhost/backsolve:cpu
    "$here/build_image.sh" cpu "$SOLVER_IMAGE"
fi
engine_prometheus_image
tools=$("$here/fetch_tools.sh" "$PYTHON")
export PYTHON SOLVER_IMAGE PROMETHEUS_IMAGE DOCKER_COMPOSE=$tools/bin/docker-compose

# What an interrupted run left is forgotten as after a reboot: its processes died with their namespace.
rm -rf "$ENGINE_CACHE"/{tmp,run,networks,volumes,podman.sock}
podman rm --all --force >/dev/null 2>&1 || true
unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
    "${BASH_SOURCE[0]}" --inside
