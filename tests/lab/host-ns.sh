#!/usr/bin/env bash
# A light "host": network, process, mount, host-name and IPC namespaces with a libvirt of their
# own, for tests that need several hosts on one machine, or that shall not meet the machine's own
# libvirt. It takes about a second to make and leaves nothing behind.
#
#   host-ns.sh up NAME [--listen]   make a host; prints KEY=VALUE lines: name pid address gateway dir
#                                   (--listen: libvirt also takes migrations, tcp://ADDRESS)
#   host-ns.sh exec NAME CMD…       run a command in it, as root
#   host-ns.sh pids NAME            its processes, as "PID COMMAND LINE" with the ids seen from here
#   host-ns.sh show NAME | list     what is there
#   host-ns.sh down NAME | --all    end every process of it and remove its files
#
# Inside: /run is its own and empty, /etc/libvirt, /var/lib/libvirt, /var/cache/libvirt and
# /var/log/libvirt are its own, eth0 has its address on a bridge that the lab's hosts share. The
# rest of the file system is the machine's. State is kept in $KRING_LAB_DIR (/var/tmp/kring-lab);
# a host whose making or removing was killed half-way is cleaned by the next `up` or `down`, and so
# is one called NAME-PID whose process PID has gone.
set -euo pipefail
self=$(realpath "$0")
. "$(dirname "$self")/lib.sh"

LAB=${KRING_LAB_DIR:-/var/tmp/kring-lab}
BRIDGE=${KRING_LAB_BRIDGE:-kringlab}
PREFIX=${KRING_LAB_PREFIX:-10.99.0}

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$self"; exit "${1:-2}"; }

# First process of the host; everything in it dies with it.
inside() {
    local dir=$1 listen=$2 name=${1##*/} part
    trap '' HUP INT TERM
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 run /run
    mkdir -p /run/lock /run/netns /run/libvirt
    mount -t sysfs sysfs /sys
    for part in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
        mkdir -p "$dir/$part"
        mount --bind "$dir/$part" "/$part"
    done
    # Names are looked up in files alone: there is no server to ask, and libvirt asks for its own
    # name with every migration.
    printf '127.0.0.1 localhost\n%s %s\n' "$(<"$dir/address")" "$name" >"$dir/hosts"
    mount --bind "$dir/hosts" /etc/hosts
    : >"$dir/resolv.conf"
    [ ! -f /etc/resolv.conf ] || mount --bind "$dir/resolv.conf" /etc/resolv.conf
    hostname "$name"
    ip link set lo up
    # The other end of the cable is put in from outside.
    until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
    ip addr add "$(<"$dir/address")/24" dev eth0
    ip link set eth0 up
    ip route add default via "$PREFIX.1"
    /usr/sbin/virtlogd --pid-file /run/virtlogd.pid >"$dir/virtlogd.out" 2>&1 &
    until [ -S /run/libvirt/virtlogd-sock ]; do sleep 0.02; done
    # shellcheck disable=SC2046
    /usr/sbin/libvirtd --pid-file /run/libvirtd.pid $([ "$listen" = yes ] && echo --listen) >"$dir/libvirtd.out" 2>&1 &
    local libvirtd=$!
    until [ -S /run/libvirt/libvirt-sock ]; do
        kill -0 "$libvirtd" 2>/dev/null || { touch "$dir/failed"; exit 1; }
        sleep 0.02
    done
    touch "$dir/ready"
    # As process 1, bash collects what others leave behind. libvirtd may end: tests do that to it.
    while :; do sleep infinity & wait $! || true; done
}

write_configuration() {
    local dir=$1 address=$2
    mkdir -p "$dir/etc/libvirt/qemu/networks" "$dir/var/lib/libvirt"
    [ ! -d /etc/libvirt/nwfilter ] || cp -a /etc/libvirt/nwfilter "$dir/etc/libvirt/"
    cat >"$dir/etc/libvirt/libvirtd.conf" <<END
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
listen_tls = 0
listen_tcp = 1
listen_addr = "$address"
auth_tcp = "none"
log_outputs = "2:stderr"
END
    cat >"$dir/etc/libvirt/qemu.conf" <<END
security_driver = "none"
user = "root"
group = "root"
cgroup_controllers = []
migration_address = "$address"
END
}

# Prints the ids of processes that were started to hold the host in folder $1, recorded or not.
holders() {
    local entry args
    for entry in /proc/[0-9]*; do
        { mapfile -d '' -t args <"$entry/cmdline"; } 2>/dev/null || continue
        [[ " ${args[*]:-} " == *" inside $1 "* ]] && printf '%s\n' "${entry#/proc/}"
    done
    return 0
}

clean() {
    local dir=$LAB/$1 pid tries=0
    while pid=$(holders "$dir") && [ -n "$pid" ]; do
        # shellcheck disable=SC2086 # one or two ids
        kill -KILL $pid 2>/dev/null || true
        tries=$((tries + 1))
        [ $tries -lt 200 ] || die "the processes of $1 do not end: $pid"
        sleep 0.05
    done
    rm -rf "$dir"
    if ! compgen -G "$LAB/*/index" >/dev/null; then
        ip link del "$BRIDGE" 2>/dev/null || true
        rmdir "$LAB/hosts" 2>/dev/null || true
    fi
}

# A test names its host after itself and its process, NAME-PID: when that process is gone without
# having taken the host down, it was killed, and the host is cleaned.
sweep() {
    local dir
    for dir in "$LAB"/*/; do
        [[ $dir =~ -([0-9]+)/$ ]] && [ ! -e "/proc/${BASH_REMATCH[1]}" ] || continue
        clean "$(basename "$dir")"
    done
}

show() {
    local dir=$LAB/$1
    alive "$(cat "$dir/holder" 2>/dev/null)" || return 1
    printf 'name=%s\npid=%s\naddress=%s\ngateway=%s\ndir=%s\n' \
        "$1" "$(cut -d' ' -f1 "$dir/holder")" "$(<"$dir/address")" "$PREFIX.1" "$dir"
}

up() {
    local name=$1 listen=no dir=$LAB/$1 index outer init tries=0
    [ "${2:-}" = --listen ] && listen=yes
    [[ $name =~ ^[a-z][a-z0-9-]{0,60}$ ]] || die "a host's name is lower-case letters, digits and dashes"
    show "$name" 2>/dev/null && [ -e "$dir/ready" ] && return 0
    sweep
    clean "$name"
    mkdir -p "$dir"
    for ((index = 11; ; index++)); do
        [ $index -lt 250 ] || die "the lab has no address left"
        grep -qsx "$index" "$LAB"/*/index || break
    done
    echo "$index" >"$dir/index"
    echo "$PREFIX.$index" >"$dir/address"
    write_configuration "$dir" "$PREFIX.$index"
    if ! ip link show "$BRIDGE" >/dev/null 2>&1; then
        ip link add "$BRIDGE" type bridge
        ip addr add "$PREFIX.1/24" dev "$BRIDGE"
        ip link set "$BRIDGE" up
    fi
    # 9 is the lab's lock, which must not live as long as the host.
    setsid unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc \
        bash "$self" inside "$dir" "$listen" >"$dir/holder.out" 2>&1 </dev/null 9>&- &
    outer=$!
    until init=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null || pgrep -P "$outer") && [ -n "$init" ]; do
        kill -0 "$outer" 2>/dev/null || die "no namespaces: $(cat "$dir/holder.out")"
        sleep 0.02
    done
    init=${init// /}
    echo "$init $(start_time "$init")" >"$dir/holder"
    ip link add "klab$index" type veth peer name eth0 netns "$init"
    ip link set "klab$index" master "$BRIDGE" up
    until [ -e "$dir/ready" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 600 ] || [ -e "$dir/failed" ] || ! alive "$(cat "$dir/holder")"; then
            cat "$dir"/*.out >&2
            clean "$name"
            die "host $name did not come up"
        fi
        sleep 0.05
    done
    show "$name"
}

enter() {
    local name=$1 record; shift
    record=$(cat "$LAB/$name/holder" 2>/dev/null) || die "there is no host $name"
    alive "$record" || die "host $name is not running"
    exec nsenter --target "${record% *}" --all --wd="$PWD" -- "$@"
}

pids() {
    local record namespace entry
    record=$(cat "$LAB/$1/holder" 2>/dev/null) && alive "$record" || die "there is no host $1"
    namespace=$(readlink "/proc/${record% *}/ns/pid")
    for entry in /proc/[0-9]*; do
        [ "$(readlink "$entry/ns/pid" 2>/dev/null)" = "$namespace" ] || continue
        printf '%s %s\n' "${entry#/proc/}" "$(tr '\0' ' ' <"$entry/cmdline" 2>/dev/null)"
    done
}

main() {
    local verb=${1:-} name
    case $verb in ''|-h|--help|help) usage 0 ;; esac
    shift
    if [ "$verb" = inside ]; then inside "$@"; fi
    if [ "$(id -u)" -ne 0 ]; then
        need_privileges
        exec sudo --preserve-env=KRING_LAB_DIR,KRING_LAB_BRIDGE,KRING_LAB_PREFIX "$self" "$verb" "$@"
    fi
    case $verb in
    up)   [ $# -ge 1 ] || usage; mkdir -p "$LAB"; lock "$LAB/.lock"; up "$@" ;;
    down) [ $# -eq 1 ] || usage
          [ -d "$LAB" ] || return 0
          lock "$LAB/.lock"
          if [ "$1" = --all ]; then
              for name in "$LAB"/*/; do [ ! -d "$name" ] || clean "$(basename "$name")"; done
              ip link del "$BRIDGE" 2>/dev/null || true
              rm -rf "$LAB"
          else
              clean "$1"
          fi ;;
    exec) [ $# -ge 2 ] || usage; enter "$@" ;;
    pids) [ $# -eq 1 ] || usage; pids "$1" ;;
    show) [ $# -eq 1 ] || usage; show "$1" || die "there is no host $1" ;;
    list) for name in "$LAB"/*/; do [ ! -d "$name" ] || basename "$name"; done ;;
    *)    usage ;;
    esac
}
main "$@"
