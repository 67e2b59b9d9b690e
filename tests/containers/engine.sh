#!/usr/bin/env bash
# Brings up a container engine on a bare Debian machine (as root) and gives it
# the base image that the product's Dockerfile names, for the container tests.
# No image registry is needed: the base image is made from Debian's packages.
#
#   engine.sh        install what is missing, start the engine, make the image
#   engine.sh stop   end the engine that this script started
#
# Running it again is quick: each step is skipped when it is done already.
# State (pid file, logs, lock) lives in ${TMPDIR:-/tmp}/attention-containers.
#
#   ENGINE_STORAGE_DRIVER   dockerd's storage driver (default: vfs, which works
#                           everywhere; auto: overlay2 where that works, else vfs)
#   ENGINE_START_SECONDS    how long to wait for the engine (default: 60)
set -euo pipefail

readonly BASE_IMAGE=python:3.11-slim-bookworm
readonly SUITE=bookworm
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt
readonly STATE="${TMPDIR:-/tmp}/attention-containers"
readonly PID_FILE="$STATE/dockerd.pid"
readonly ENGINE_LOG="$STATE/dockerd.log"
readonly SETUP_LOG="$STATE/setup.log"
readonly STORAGE_DRIVER="${ENGINE_STORAGE_DRIVER:-vfs}"
readonly START_SECONDS="${ENGINE_START_SECONDS:-60}"
readonly ENGINE_ROOT=/var/lib/docker
readonly LOCK_SECONDS=900
readonly STOP_SECONDS=30

# Daemons and debootstrap live in the sbin directories, which a test's PATH may lack.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

WORK_DIR=

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a command with its output in the set-up log; shows the log's tail if it fails.
logged() {
    if ! "$@" >"$SETUP_LOG" 2>&1 </dev/null; then
        tail -n 40 "$SETUP_LOG" >&2
        die "failed: $*"
    fi
}

cleanup() {
    if [[ -n "$WORK_DIR" ]]; then
        rm -rf --one-file-system -- "$WORK_DIR"
    fi
}

# --- processes -------------------------------------------------------------

# Is process $1 a live (not zombie) process named $2?
is_alive() {
    local pid=$1 name=$2 state
    [[ "$pid" =~ ^[0-9]+$ && -r "/proc/$pid/status" ]] || return 1
    [[ "$(cat "/proc/$pid/comm" 2>/dev/null)" == "$name" ]] || return 1
    state=$(awk '$1 == "State:" { print $2 }' "/proc/$pid/status" 2>/dev/null) || return 1
    [[ -n "$state" && "$state" != Z && "$state" != X ]]
}

# The pid in file $1 if it is of a live process named $2, else nothing.
live_pid() {
    local pid=
    if [[ -r "$1" ]]; then
        read -r pid <"$1" || true
    fi
    if is_alive "$pid" "$2"; then
        printf '%s\n' "$pid"
    fi
}

# Asks process $1, named $2, to end; insists after STOP_SECONDS.
end_process() {
    local pid=$1 name=$2 deadline=$((SECONDS + STOP_SECONDS))
    kill -TERM "$pid" 2>/dev/null || true
    while is_alive "$pid" "$name"; do
        if ((SECONDS >= deadline)); then
            say "$name (pid $pid) does not end by itself: killing it"
            kill -KILL "$pid" 2>/dev/null || true
            sleep 1
            return
        fi
        sleep 0.2
    done
}

# --- packages --------------------------------------------------------------

engine_answers() { timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

have() { command -v "$1" >/dev/null 2>&1; }

have_compose() { docker compose version >/dev/null 2>&1 || have docker-compose; }

base_image_present() { docker image inspect "$BASE_IMAGE" >/dev/null 2>&1; }

# apt-get update takes a lock of its own that it does not wait for.
apt_update() {
    local attempt
    for attempt in 1 2 3 4 5; do
        if apt-get update -q >"$SETUP_LOG" 2>&1 </dev/null; then
            return
        fi
        ((attempt == 5)) || sleep 5
    done
    tail -n 40 "$SETUP_LOG" >&2
    die "apt-get update failed"
}

install_packages() {
    local missing=()
    have docker && have dockerd || missing+=(docker.io)
    have_compose || missing+=(docker-compose)
    have debootstrap || missing+=(debootstrap)
    [[ -s "$KEYRING" ]] || missing+=(debian-archive-keyring)
    [[ -s "$CA_BUNDLE" ]] || missing+=(ca-certificates)
    if ((${#missing[@]} == 0)); then
        say "packages: all there"
        return
    fi
    say "packages: installing ${missing[*]}"
    apt_update
    logged env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "${missing[@]}"
    hash -r
}

# --- engine ----------------------------------------------------------------

# A machine that went down hard leaves pid files behind, whose numbers may be
# other processes' by now; dockerd would take those for its own and give up.
drop_stale_pid_files() {
    local containerd_pid_file=/run/docker/containerd/containerd.pid
    [[ -n "$(live_pid "$PID_FILE" dockerd)" ]] || rm -f "$PID_FILE"
    [[ -n "$(live_pid /run/docker.pid dockerd)" ]] || rm -f /run/docker.pid
    [[ -n "$(live_pid "$containerd_pid_file" containerd)" ]] || rm -f "$containerd_pid_file"
}

# The storage driver to use: "auto" is decided by mounting an overlay, where it
# would be used but in a mount namespace of its own.
storage_driver() {
    local probe driver=$STORAGE_DRIVER
    if [[ "$driver" == auto ]]; then
        driver=vfs
        mkdir -p -- "$ENGINE_ROOT"
        probe=$(mktemp -d "$ENGINE_ROOT/probe.XXXXXX")
        mkdir "$probe"/{lower,upper,work,merged}
        if unshare --mount mount -t overlay overlay \
            -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" \
            "$probe/merged" 2>/dev/null; then
            driver=overlay2
        fi
        rm -rf --one-file-system -- "$probe"
    fi
    printf '%s\n' "$driver"
}

# Starts dockerd with the arguments given and waits until it answers.
try_engine() {
    local deadline pid
    drop_stale_pid_files
    # Its own session and no inherited descriptors (9 is the lock): it outlives
    # this script, and nothing that reads the script's output waits for it.
    # shellcheck disable=SC2016
    setsid bash -c 'echo $$ >"$0"; exec dockerd "$@"' "$PID_FILE" \
        --log-level=warn --data-root="$ENGINE_ROOT" "$@" >"$ENGINE_LOG" 2>&1 </dev/null 9>&- &
    pid=$!
    deadline=$((SECONDS + START_SECONDS))
    until engine_answers; do
        if ! kill -0 "$pid" 2>/dev/null; then
            say "engine: dockerd ended; the tail of $ENGINE_LOG:" >&2
            tail -n 20 "$ENGINE_LOG" >&2
            rm -f "$PID_FILE"
            return 1
        fi
        if ((SECONDS >= deadline)); then
            say "engine: no answer in $START_SECONDS s; the tail of $ENGINE_LOG:" >&2
            tail -n 20 "$ENGINE_LOG" >&2
            pid=$(live_pid "$PID_FILE" dockerd)
            [[ -z "$pid" ]] || end_process "$pid" dockerd
            rm -f "$PID_FILE"
            return 1
        fi
        sleep 0.2
    done
    disown "$pid" 2>/dev/null || true
}

start_engine() {
    local wait_until driver
    if engine_answers; then
        say "engine: answers already"
        return
    fi
    # Where systemd runs, the package's own service may just be starting.
    if [[ -d /run/systemd/system ]]; then
        wait_until=$((SECONDS + 15))
        while ((SECONDS < wait_until)); do
            sleep 1
            if engine_answers; then
                say "engine: answers (system service)"
                return
            fi
        done
    fi
    [[ -z "$(live_pid "$PID_FILE" dockerd)" ]] ||
        die "dockerd (pid $(live_pid "$PID_FILE" dockerd)) runs but does not answer; see $ENGINE_LOG"
    driver=$(storage_driver)
    say "engine: starting dockerd ($driver)"
    if ! try_engine --storage-driver="$driver"; then
        say "engine: trying without packet filter and bridge: only host networking will work"
        try_engine --storage-driver="$driver" \
            --iptables=false --ip6tables=false --bridge=none ||
            die "the engine does not start"
    fi
    say "engine: started, pid $(<"$PID_FILE"), log $ENGINE_LOG"
}

stop_engine() {
    local pid
    pid=$(live_pid "$PID_FILE" dockerd)
    if [[ -z "$pid" ]]; then
        rm -f "$PID_FILE"
        say "no engine of this script's runs"
        return
    fi
    end_process "$pid" dockerd
    rm -f "$PID_FILE"
    say "engine (pid $pid) stopped"
}

# --- base image ------------------------------------------------------------

# The Debian mirror that this machine's apt is set up with, whatever the file format.
# shellcheck disable=SC2016
apt_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Codename: $SUITE" \
        'Component: main' | head -n 1
}

make_base_image() {
    local mirror root id
    if base_image_present; then
        say "base image: $BASE_IMAGE is there"
        return
    fi
    mirror=$(apt_mirror)
    if [[ -z "$mirror" ]]; then
        apt_update
        mirror=$(apt_mirror)
    fi
    [[ -n "$mirror" ]] || die "apt's sources name no mirror with $SUITE main"

    WORK_DIR=$(mktemp -d "$STATE/base.XXXXXX")
    root="$WORK_DIR/root"
    say "base image: debootstrap $SUITE"
    # In a mount namespace of its own, so that none of its mounts can stay behind.
    logged unshare --mount debootstrap --variant=minbase --keyring="$KEYRING" \
        --include=python3,python3-venv,ca-certificates "$SUITE" "$root" "$mirror"

    # Trust what this machine trusts, so that pip works in a build here.
    cp -- "$CA_BUNDLE" "$root$CA_BUNDLE"
    # The official image has its interpreter here; Debian's knows it by either name.
    ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
    ln -s /usr/bin/python3 "$root/usr/local/bin/python"
    # This machine's names and everything that nothing at run time reads.
    rm -rf -- "$root"/etc/{hostname,resolv.conf} \
        "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* \
        "$root"/usr/share/{doc,info,man,locale}/* "$root"/tmp/*

    say "base image: import as $BASE_IMAGE"
    # Named only once it is whole.
    id=$(tar --create --directory="$root" --numeric-owner --one-file-system \
        --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . |
        docker import \
            --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
            --change 'ENV LANG=C.UTF-8' \
            --change "ENV SSL_CERT_FILE=$CA_BUNDLE" \
            --change "ENV PIP_CERT=$CA_BUNDLE" \
            --change 'CMD ["python3"]' \
            -)
    docker tag "$id" "$BASE_IMAGE"
    cleanup
    WORK_DIR=
}

# --- main ------------------------------------------------------------------

main() {
    local action=${1:-start}
    [[ $# -le 1 && "$action" =~ ^(start|stop)$ ]] || die "usage: engine.sh [start|stop]"
    mkdir -p -- "$STATE"
    exec 9>"$STATE/lock"
    flock --timeout "$LOCK_SECONDS" 9 || die "another run holds $STATE/lock"
    trap cleanup EXIT
    if [[ "$action" == stop ]]; then
        stop_engine
        return
    fi
    if ! { have docker && engine_answers && have_compose && base_image_present; }; then
        ((EUID == 0)) || die "needs root"
    fi
    install_packages
    start_engine
    make_base_image
    say "compose: $(docker compose version --short 2>/dev/null || docker-compose version --short)"
    echo "engine ready"
}

main "$@"
