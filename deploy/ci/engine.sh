#!/bin/bash
# A container engine on a Debian machine that has none: buildah builds, podman runs and speaks Docker's API.
# To be sourced. Needs root. Images, networks and volumes are kept below $ENGINE_CACHE, apart from the machine's own.

ENGINE_CACHE=${XDG_CACHE_HOME:-/tmp}/backsolve-ci-$(id -u)
ENGINE_PACKAGES=(buildah podman crun netavark aardvark-dns iptables iproute2 mmdebstrap
    prometheus haproxy shellcheck curl)
BASE_IMAGE=localhost/debian12-python:1
PROMETHEUS_IMAGE=localhost/debian12-prometheus:1

say() { printf '%s %s\n' '==>' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# Debian packages that are missing; never upgrades what is there.
engine_install() {
    [ "$(id -u)" = 0 ] || die "the container tests need root: they mount, build and run images"
    local missing=() package
    for package in "${ENGINE_PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} != 0 ] || return 0
    command -v apt-get >/dev/null || die "the container tests need apt-get to install: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get update -qq
    # Neither Prometheus nor HAProxy must start as a service here: only their binaries are used.
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$ENGINE_CACHE/apt.log" 2>&1 \
        || { tail -n 30 "$ENGINE_CACHE/apt.log" >&2; die "apt-get install failed"; }
}

# Storage and run-time settings under which podman runs without systemd and without the right to raise limits.
engine_configure() {
    mkdir -p "$ENGINE_CACHE"
    [ -O "$ENGINE_CACHE" ] || die "$ENGINE_CACHE belongs to somebody else"
    chmod 700 "$ENGINE_CACHE"
    cat >"$ENGINE_CACHE/storage.conf" <<CONF
[storage]
driver = "vfs"
runroot = "$ENGINE_CACHE/run"
graphroot = "$ENGINE_CACHE/graph"
CONF
    # Limits are inherited from this shell: raising them needs CAP_SYS_RESOURCE.
    cat >"$ENGINE_CACHE/containers.conf" <<CONF
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
static_dir = "$ENGINE_CACHE/libpod"
tmp_dir = "$ENGINE_CACHE/tmp"
volume_path = "$ENGINE_CACHE/volumes"
[network]
network_backend = "netavark"
network_config_dir = "$ENGINE_CACHE/networks"
CONF
    export CONTAINERS_STORAGE_CONF=$ENGINE_CACHE/storage.conf CONTAINERS_CONF=$ENGINE_CACHE/containers.conf
}

# One at a time works in the store, and keeps it until its process ends; a script that calls another passes it on.
engine_lock() {
    [ -z "${ENGINE_LOCKED:-}" ] || return 0
    exec 9>"$ENGINE_CACHE/lock"
    flock 9
    export ENGINE_LOCKED=1
}

# engine_bootstrap NAME PACKAGES HOOK [podman import options]: a minimal Debian 12 with PACKAGES as image NAME, made once.
# HOOK is a command that mmdebstrap runs with the new root in $1.
engine_bootstrap() {
    local name=$1 packages=$2 hook=$3
    shift 3
    ! podman image exists "$name" || return 0
    say "bootstrapping $name"
    nice -n 10 mmdebstrap --quiet --variant=minbase --format=tar --include="$packages" --customize-hook="$hook" \
        bookworm "$ENGINE_CACHE/bootstrap.tar"
    podman import --quiet "$@" "$ENGINE_CACHE/bootstrap.tar" "$name" >/dev/null
    rm -f "$ENGINE_CACHE/bootstrap.tar"
}

engine_base_image() {
    engine_bootstrap "$BASE_IMAGE" python3,python3-venv,ca-certificates true
}

# Stands where the published Prometheus image stands: the same entry point, user and data folder.
engine_prometheus_image() {
    # shellcheck disable=SC2016  # $1 is the hook's
    engine_bootstrap "$PROMETHEUS_IMAGE" prometheus,ca-certificates 'install -d -o 65534 -g 65534 "$1/prometheus"' \
        --change 'ENTRYPOINT ["/usr/bin/prometheus"]' --change 'USER 65534:65534' --change 'VOLUME /prometheus'
}
