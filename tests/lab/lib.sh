# What the lab's scripts have in common: messages, privileges, locks, places. Sourced, never run.
# It changes nothing on the machine.

say()  { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die()  { printf 'error: %s\n' "$*" >&2; exit 1; }

# Privileges: an ordinary user goes through sudo; root needs nothing, not even an installed sudo.
if [ "$(id -u)" -eq 0 ]; then SUDO=(); else SUDO=(sudo); fi

need_privileges() {
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo >/dev/null || die "this must run as root, or as a user with sudo"
    sudo -n true 2>/dev/null || sudo -v || die "sudo was refused"
}

# Sets CACHE, the folder for what is slow to make again; outside of the checkout, so that it
# outlives a fresh clone.
find_cache() {
    CACHE=${KRING_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/kring}
    mkdir -p "$CACHE"
}

# Runs the rest of the calling shell while nobody else holds the lock file $1. Programs that must
# outlive the shell are started with 9>&- so that they do not keep the lock.
lock() {
    exec 9>"$1"
    flock -w "${2:-900}" 9 || die "another run holds $1"
}

# Whether systemd runs this machine, so that daemons are its units.
has_systemd() { [ -d /run/systemd/system ]; }

# Field 22 of /proc/PID/stat: when the process started. With its id it names a process for good,
# because ids are used again and start times are not. Fails when there is no such process.
start_time() {
    local stat
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    stat=${stat##*) }
    # shellcheck disable=SC2086 # split into fields on purpose
    set -- $stat
    printf '%s' "${20}"
}

# Whether the recorded process "PID START" still is that process.
alive() {
    local pid=${1% *} started=${1#* }
    [ -n "$pid" ] && [ "$(start_time "$pid" || true)" = "$started" ]
}

# Ends the recorded process "PID START": politely, and after $2 seconds (default 10) for good.
end_process() {
    local record=$1 pid=${1% *} left=$(( ${2:-10} * 10 ))
    alive "$record" || return 0
    "${SUDO[@]}" kill -TERM "$pid" 2>/dev/null || true
    while alive "$record" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
    alive "$record" || return 0
    "${SUDO[@]}" kill -KILL "$pid" 2>/dev/null || true
    left=50
    while alive "$record" && [ "$left" -gt 0 ]; do sleep 0.1; left=$((left - 1)); done
    ! alive "$record"
}
