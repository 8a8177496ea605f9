#!/usr/bin/env bash
# A whole *machine*: Debian 12 booted by its own systemd in a container, with journal, units, sshd and a
# network card. That is where packages are installed and the playbook is played.
#
#   machine.sh base                     make what all machines start from, when it is missing; prints its folder
#   machine.sh up NAME [--ready] [--share DIR]
#                                       boot one; prints KEY=VALUE lines: name address gateway pid dir
#                                       (--ready: the packages that a KVM host needs are installed already;
#                                       --share: a folder that it sees as a mount at /mnt/nas)
#   machine.sh exec NAME CMD…           run a command in it, as root
#   machine.sh show NAME | list         what is there
#   machine.sh down NAME | --all        end it and remove its files
#
# The base is made with debootstrap, once (three minutes), and kept in the cache outside of the checkout.
# Packages that Kring depends on lie in its apt cache, so that machines install them without a network.
# A machine writes to an overlay of its own in $KRING_MACHINES_DIR (/var/tmp/kring-machines). Killing its
# first process ends everything in it. One called NAME-PID is removed by the next `up` when the process
# PID has gone, and so is one whose making was killed half-way.
set -euo pipefail
self=$(realpath "$0")
. "$(dirname "$self")/lib.sh"

MACHINES=${KRING_MACHINES_DIR:-/var/tmp/kring-machines}
BRIDGE=${KRING_MACHINES_BRIDGE:-kringmach}
PREFIX=${KRING_MACHINES_PREFIX:-10.98.0}
MIRROR=${KRING_DEBIAN_MIRROR:-http://deb.debian.org/debian}
SUITE=bookworm
# What an ordinary server has, and what a playbook needs to begin with.
PLAIN=systemd,systemd-sysv,dbus,udev,python3,openssh-server,iproute2,iputils-ping,procps,ca-certificates,kmod,less
# What the packages of Kring need on a host, and what a cluster needs beside them.
HOST='libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-daemon-config-nwfilter libvirt-clients
      qemu-system-x86 qemu-utils seabios ovmf ipxe-qemu dnsmasq-base nftables'
CLUSTER='rabbitmq-server postgresql haproxy python3-apt python3-psycopg2 jq curl bash-completion man-db rpm'

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$self"; exit "${1:-2}"; }

# ---------------------------------------------------------------------------------------- the base

base_folder() {
    find_cache
    BASE=$CACHE/machine/$SUITE-$( { printf '%s\n' "$PLAIN" "$HOST" "$CLUSTER" "$MIRROR"; sed -n '/^make_base/,/^}/p' "$self"; } | sha256sum | cut -c1-12)
}

# In a chroot whose first processes are its own, so that what a package starts ends with the chroot.
in_root() { unshare --mount --pid --fork --mount-proc="$1/proc" chroot "$1" env DEBIAN_FRONTEND=noninteractive LC_ALL=C "${@:2}"; }

make_base() {
    local root=$1/plain layer=$1/ready
    debootstrap --variant=minbase --include="$PLAIN" "$SUITE" "$root" "$MIRROR"
    printf 'deb %s %s main\ndeb %s %s-updates main\ndeb %s-security %s-security main\n' \
        "$MIRROR" "$SUITE" "$MIRROR" "$SUITE" "$MIRROR" "$SUITE" >"$root/etc/apt/sources.list"
    # Nothing that is installed here is started; in a machine that has booted it is.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    printf 'APT::Keep-Downloaded-Packages "true";\nBinary::apt::APT::Keep-Downloaded-Packages "true";\n' >"$root/etc/apt/apt.conf.d/90keep"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    in_root "$root" apt-get -q update
    in_root "$root" apt-get -q -y upgrade
    # shellcheck disable=SC2086 # lists of names
    in_root "$root" apt-get -q -y -d install --no-install-recommends $HOST $CLUSTER
    : >"$root/etc/resolv.conf"
    : >"$root/etc/machine-id"
    rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/etc/hostname"
    in_root "$root" systemctl enable systemd-networkd.service ssh.service
    # There is no console to log in at, no clock to set and no hardware to wait for.
    in_root "$root" systemctl mask console-getty.service getty@tty1.service systemd-timesyncd.service \
        apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer fstrim.timer
    mkdir -p "$layer" "$1/work" "$1/merged"
    mount -t overlay overlay -o "lowerdir=$root,upperdir=$layer,workdir=$1/work" "$1/merged"
    # shellcheck disable=SC2086
    in_root "$1/merged" apt-get -q -y install --no-install-recommends $HOST
    rm -f "$1/merged/usr/sbin/policy-rc.d"
    : >"$1/merged/etc/machine-id"
    umount "$1/merged"
    rmdir "$1/merged"
    rm -rf "$1/work"
    rm -f "$root/usr/sbin/policy-rc.d"
}

base() {
    base_folder
    [ -d "$BASE" ] && return 0
    command -v debootstrap >/dev/null && command -v systemd-nspawn >/dev/null ||
        die "debootstrap and systemd-nspawn are needed: tests/lab/install-deps.sh machine"
    mkdir -p "$CACHE/machine"
    lock "$CACHE/machine.lock" 1800
    [ -d "$BASE" ] && { exec 9>&-; return 0; }
    say "making the base of machines (once, some minutes)" >&2
    rm -rf "$CACHE/machine"/*.part
    # Mounts that a killed run would leave are this shell's own.
    if ! unshare --mount --propagation private "$self" make-base "$BASE.part" >"$CACHE/machine.log" 2>&1; then
        tail -n 20 "$CACHE/machine.log" >&2
        die "the base could not be made; the log is $CACHE/machine.log"
    fi
    mv "$BASE.part" "$BASE"
    find "$CACHE/machine" -mindepth 1 -maxdepth 1 ! -path "$BASE" -exec rm -rf {} +
    exec 9>&-
}

# ---------------------------------------------------------------------------------------- a machine

# The process that becomes systemd-nspawn. The overlay is mounted for it alone, and goes with it.
inside() {
    local dir=$1 name=${1##*/} lower=$BASE/plain tun=()
    [ ! -f "$dir/ready" ] || lower=$BASE/ready:$lower
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$lower,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
    [ ! -c /dev/net/tun ] || tun=(--bind=/dev/net/tun)
    [ ! -f "$dir/share" ] || tun+=(--bind="$(<"$dir/share"):/mnt/nas")
    # What a KVM host does to its kernel (forwarding, bridges) it must be allowed to do here.
    export SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    # 133: the machine restarts itself.
    local code=133
    while [ $code -eq 133 ]; do
        code=0
        systemd-nspawn --quiet -D "$dir/root" -M "$name" --boot --register=no --keep-unit --network-bridge="$BRIDGE" \
            --capability=all --link-journal=no --resolv-conf=off --timezone=off --console=pipe "${tun[@]}" || code=$?
    done
    exit $code
}

settings() {
    local dir=$1 name=${1##*/} address=$2
    mkdir -p "$dir/upper/etc/systemd/network" "$dir/upper/root/.ssh" "$dir/work" "$dir/root"
    chmod 755 "$dir/upper" "$dir/upper/etc"
    chmod 700 "$dir/upper/root" "$dir/upper/root/.ssh"
    printf '[Match]\nName=host0\n[Network]\nAddress=%s/24\nGateway=%s.1\nLinkLocalAddressing=no\n' "$address" "$PREFIX" \
        >"$dir/upper/etc/systemd/network/10-machine.network"
    printf '%s\n' "$name" >"$dir/upper/etc/hostname"
    printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" >"$dir/upper/etc/hosts"
    if [ ! -f "$MACHINES/ssh_key" ]; then
        ssh-keygen -q -t ed25519 -N '' -C kring-machines -f "$MACHINES/ssh_key.part"
        mv "$MACHINES/ssh_key.part.pub" "$MACHINES/ssh_key.pub"
        mv "$MACHINES/ssh_key.part" "$MACHINES/ssh_key"
    fi
    mkdir -p "$dir/upper/etc/ssh"
    ssh-keygen -A -f "$dir/upper" >/dev/null
    install -m 600 "$MACHINES/ssh_key.pub" "$dir/upper/root/.ssh/authorized_keys"
}

bridge() {
    ip link show "$BRIDGE" >/dev/null 2>&1 || ip link add "$BRIDGE" type bridge
    ip addr replace "$PREFIX.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
}

# The first process of a machine, seen from here: the child of the nspawn that the recorded process has.
first_process() {
    local record pid step
    record=$(cat "$1/process" 2>/dev/null) && alive "$record" || return 1
    pid=${record% *}
    for step in nspawn init; do
        pid=$(cat "/proc/$pid/task/$pid/children" 2>/dev/null) || return 1
        pid=${pid%% *}
        [ -n "$pid" ] || return 1
    done
    printf '%s' "$pid"
}

into() { local pid; pid=$(first_process "$MACHINES/$1") || die "$1 does not run"; shift; nsenter -t "$pid" -a -- env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 SYSTEMD_PAGER= "$@"; }

# Prints the ids of processes that were started to hold the machine in folder $1, recorded or not.
holders() {
    local entry args
    for entry in /proc/[0-9]*; do
        { mapfile -d '' -t args <"$entry/cmdline"; } 2>/dev/null || continue
        case " ${args[*]:-} " in *" inside $1 "* | *"systemd-nspawn "*" $1/root "*) printf '%s\n' "${entry#/proc/}" ;; esac
    done
    return 0
}

clean() {
    local dir=$MACHINES/$1 pid tries=0 first
    first=$(first_process "$dir" || true)
    while pid="$(holders "$dir") $first" && [ -n "${pid// /}" ]; do
        # shellcheck disable=SC2086 # some ids
        kill -KILL $pid 2>/dev/null || true
        [ -z "$first" ] || [ -d "/proc/$first" ] || first=
        tries=$((tries + 1))
        [ $tries -lt 300 ] || die "the processes of $1 do not end: $pid"
        sleep 0.05
    done
    ip link del "vb-$1" 2>/dev/null || true
    # A folder that is still busy is one whose processes are just ending.
    for tries in 1 2 3 4 5; do rm -rf "$dir" 2>/dev/null && break; sleep 0.5; done
    [ ! -e "$dir" ] || die "$dir could not be removed"
    find /sys/fs/cgroup -depth -type d -path "*/kring-machine-$1*" -exec rmdir {} + 2>/dev/null || true
    if ! compgen -G "$MACHINES/*/index" >/dev/null; then
        ip link del "$BRIDGE" 2>/dev/null || true
        rm -rf "$MACHINES"
    fi
}

sweep() {
    local dir name
    for dir in "$MACHINES"/*/; do
        [ -d "$dir" ] || continue
        name=$(basename "$dir")
        if [[ $name =~ -([0-9]+)$ ]] && [ ! -d "/proc/${BASH_REMATCH[1]}" ]; then clean "$name"; mkdir -p "$MACHINES"; fi
    done
}

# A number for the address that no machine has.
free_index() {
    local index
    for index in $(seq 11 250); do
        grep -qxs "$index" "$MACHINES"/*/index || { printf '%s' "$index"; return 0; }
    done
    die "too many machines"
}

# Processes of a machine get cgroups of its own, which are removed with it.
own_cgroups() {
    local controller
    for controller in /sys/fs/cgroup/*/; do
        [ -w "$controller/cgroup.procs" ] || continue
        mkdir -p "$controller/kring-machine-$1" 2>/dev/null || continue
        case $controller in
        */cpuset/) cat "$controller/cpuset.cpus" >"$controller/kring-machine-$1/cpuset.cpus"; cat "$controller/cpuset.mems" >"$controller/kring-machine-$1/cpuset.mems" ;;
        esac
        echo $$ >"$controller/kring-machine-$1/cgroup.procs" || true
    done
}

show() {
    local dir=$MACHINES/$1 pid
    pid=$(first_process "$dir") || die "$1 does not run"
    printf 'name=%s\naddress=%s\ngateway=%s.1\npid=%s\ndir=%s\nssh_key=%s\n' "$1" "$(<"$dir/address")" "$PREFIX" "$pid" "$dir" "$MACHINES/ssh_key"
}

up() {
    local name=$1 dir=$MACHINES/$1 index deadline state='' ready= share=
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        --ready) ready=yes ;;
        --share) share=$2; shift ;;
        *)       usage ;;
        esac
        shift
    done
    [[ $name =~ ^[a-z][a-z0-9-]{0,11}$ ]] || die "a machine's name is at most 12 characters a-z, 0-9 and -"
    base
    mkdir -p "$MACHINES"
    lock "$MACHINES.lock" 300
    sweep
    [ ! -e "$dir" ] || clean "$name"
    mkdir -p "$dir"
    index=$(free_index)
    printf '%s' "$index" >"$dir/index"
    printf '%s' "$PREFIX.$index" >"$dir/address"
    [ -z "$ready" ] || touch "$dir/ready"
    [ -z "$share" ] || printf '%s' "$share" >"$dir/share"
    settings "$dir" "$PREFIX.$index"
    bridge
    exec 9>&-
    (
        own_cgroups "$name"
        exec setsid unshare --mount "$self" inside "$dir"
    ) >"$dir/console.log" 2>&1 </dev/null &
    local pid=$!
    printf '%s %s' "$pid" "$(start_time "$pid")" >"$dir/process"
    disown
    deadline=$((SECONDS + 180))
    until [ "$state" = running ] || [ "$state" = degraded ]; do
        [ $SECONDS -lt $deadline ] && kill -0 "$pid" 2>/dev/null || { tail -n 20 "$dir/console.log" >&2; die "$name did not boot: ${state:-no systemd}"; }
        sleep 0.2
        state=$(into "$name" systemctl is-system-running 2>/dev/null) || true
    done
    show "$name"
}

[ "${1:-}" = make-base ] || need_privileges
[ "$(id -u)" -eq 0 ] || exec sudo KRING_CACHE_DIR="${KRING_CACHE_DIR:-}" KRING_MACHINES_DIR="$MACHINES" "$self" "$@"
case ${1:-} in
make-base) make_base "$2" ;;
inside)    base_folder; inside "$2" ;;
base)      base; say "$BASE" ;;
up)        [ $# -ge 2 ] || usage; up "${@:2}" ;;
exec)      [ $# -ge 3 ] || usage; shift; into "$@" ;;
show)      [ $# -eq 2 ] || usage; show "$2" ;;
list)      for dir in "$MACHINES"/*/index; do [ -f "$dir" ] && basename "$(dirname "$dir")"; done; true ;;
down)      [ $# -eq 2 ] || usage
           if [ "$2" = --all ]; then for dir in "$MACHINES"/*/; do [ ! -d "$dir" ] || clean "$(basename "$dir")"; done
           else clean "$2"; fi ;;
-h|--help) usage 0 ;;
*)         usage ;;
esac
