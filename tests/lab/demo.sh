#!/usr/bin/env bash
# The demo: from this checkout to a virtual machine that reports by itself, on this machine.
#
#   tests/lab/demo.sh up      what `make demo` runs
#   tests/lab/demo.sh stop    what `make demo-stop` runs: removes all that `up` made
#
# Everything is kept in one folder (KRING_DEMO_DIR, default /var/tmp/kring-demo): programs,
# database, certificates, images, logs, and the processes that were started. A second `up` begins
# by stopping what an earlier one left, whole or half.
#
#   IMAGE=path-or-URL       a qcow2 or raw image of your own in place of the test guest; cloud-init
#                           in it is given host name, ssh key and network
#   KRING_DEMO_MEMORY       memory of the VM (128MiB; 1GiB with IMAGE)
#   KRING_DEMO_FIRMWARE     bios or uefi (bios)
#   KRING_DEMO_PORT         first port to try for the controller (8443)
#   KRING_DEMO_CIDR         network of the VM (the first free of 10.77.0.0/24, 10.78.0.0/24, …)
#   KRING_DEMO_PROFILE      cargo profile that is built (dev)
#   KRING_DEMO_PROGRAMS     folder with programs that are built already; nothing is built then
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$LAB/../.." && pwd)
. "$LAB/lib.sh"

DEMO=${KRING_DEMO_DIR:-/var/tmp/kring-demo}
RUN=$DEMO/run
LOG=$DEMO/demo.log
PROFILE=${KRING_DEMO_PROFILE:-dev}
VM=demo-vm

kring() { KRING_CONFIG=$DEMO/cli.toml "$DEMO/bin/kring" "$@"; }
virsh() { "${SUDO[@]}" env LC_ALL=C virsh -q -c qemu:///system "$@"; }

# Starts a process that outlives this script. It writes down who it is before it becomes the
# program, so that one whose start was interrupted is known too.
#   daemon NAME root|user PROGRAM ARG…
daemon() {
    local name=$1 as=$2 via=(); shift 2
    [ "$as" = user ] || via=("${SUDO[@]}")
    # What is recorded there is of an earlier run, or dead.
    "${SUDO[@]}" rm -f "$RUN/$name.process"
    "${via[@]}" setsid --fork bash -c '. "$1"; umask 022; echo "$$ $(start_time $$)" >"$2"; shift 2; exec "$@"' \
        daemon "$LAB/lib.sh" "$RUN/$name.process" "$@" >>"$DEMO/$name.log" 2>&1 </dev/null 7>&- 9>&-
}
recorded() { cat "$RUN/$1.process" 2>/dev/null || true; }

# Waits until a command succeeds, at most $1 seconds, and only while the daemon $2 (or - for none) lives.
await() {
    local deadline=$((SECONDS + $1)) name=$2 begun=$SECONDS; shift 2
    until "$@"; do
        if [ "$name" != - ] && [ -f "$RUN/$name.process" ] && ! alive "$(recorded "$name")"; then
            tail -n 15 "$DEMO/$name.log"
            die "$name ended by itself; its log is $DEMO/$name.log"
        fi
        [ $SECONDS -lt $deadline ] || die "not done after $((SECONDS - begun)) s: $*"
        sleep 0.1
    done
}

# ---------------------------------------------------------------------------------------- steps

install_packages() {
    local sets=(build run)
    [ -n "${IMAGE:-}" ] || sets+=(guest)
    "$LAB/install-deps.sh" "${sets[@]}"
}

find_cargo() {
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    command -v cargo >/dev/null || die "there is no Rust toolchain: see https://rustup.rs"
}

compile() {
    local line count=0
    cd "$ROOT"
    # Cargo's own lines are the progress; they are kept in the log as well.
    CARGO_TERM_COLOR=never cargo build --locked --profile "$PROFILE" --bin kring --bin kring-controller --bin kring-agent 2>&1 |
        while IFS= read -r line; do
            printf '%s\n' "$line"
            case $line in
            *Compiling*) count=$((count + 1)); note "$count compiled:${line#*Compiling}" ;;
            *Download*|*Updating*|*Blocking*) note "${line#"${line%%[! ]*}"}" ;;
            esac
        done
}

build() {
    local from bin
    if [ -n "${KRING_DEMO_PROGRAMS:-}" ]; then
        from=$(realpath "$KRING_DEMO_PROGRAMS")
    else
        compile
        from=$(cd "$ROOT" && cargo metadata --locked --no-deps --format-version 1 | jq -r .target_directory)
        case $PROFILE in dev) from=$from/debug ;; *) from=$from/$PROFILE ;; esac
    fi
    mkdir -p "$DEMO/bin"
    for bin in kring kring-controller kring-agent; do
        # Copies: the demo goes on when the checkout is built anew or removed.
        cp "$from/$bin" "$DEMO/bin/$bin.new"
        mv "$DEMO/bin/$bin.new" "$DEMO/bin/$bin"
    done
    printf '#!/bin/sh\n# The command line of Kring, talking to the demo.\nKRING_CONFIG=%s exec %s "$@"\n' \
        "$DEMO/cli.toml" "$DEMO/bin/kring" >"$DEMO/kring"
    chmod 755 "$DEMO/kring"
}

# Writes down what the demo may have to put back when it stops.
remember_machine() {
    [ -f "$RUN/ip_forward" ] && return 0
    "${SUDO[@]}" nft list table bridge nat >/dev/null 2>&1 || touch "$RUN/no-bridge-table"
    cat /proc/sys/net/ipv4/ip_forward >"$RUN/ip_forward"
}

# libvirt probes QEMU as root, but asks whether its guests' user may open /dev/kvm. Where udev has not
# set the device's group (containers, small virtual machines), the two answers differ, and libvirt
# probes anew, for seconds, with every call. So the device gets the group that udev gives it.
open_kvm() {
    [ -c /dev/kvm ] && getent passwd libvirt-qemu >/dev/null && getent group kvm >/dev/null || return 0
    "${SUDO[@]}" runuser -u libvirt-qemu -- test -w /dev/kvm && return 0
    [ -f "$RUN/kvm" ] || stat -c '%u:%g %a' /dev/kvm >"$RUN/kvm"
    "${SUDO[@]}" chgrp kvm /dev/kvm
    "${SUDO[@]}" chmod 660 /dev/kvm
}
close_kvm() {
    local owner mode
    [ -s "$RUN/kvm" ] && [ -c /dev/kvm ] || return 0
    read -r owner mode <"$RUN/kvm"
    "${SUDO[@]}" chown "$owner" /dev/kvm
    "${SUDO[@]}" chmod "$mode" /dev/kvm
}

libvirt_answers() { virsh version >/dev/null 2>&1; }

start_libvirt() {
    open_kvm
    libvirt_answers && return 0
    if has_systemd; then
        "${SUDO[@]}" systemctl start libvirtd
        touch "$RUN/libvirtd.unit"
    else
        alive "$(recorded virtlogd)" || pgrep -x virtlogd >/dev/null || daemon virtlogd root /usr/sbin/virtlogd
        await 10 virtlogd test -S /run/libvirt/virtlogd-sock
        daemon libvirtd root /usr/sbin/libvirtd
    fi
    await 30 libvirtd libvirt_answers
}

# The first port from $1 on that nobody listens on.
free_port() {
    local port=$1
    while [ -n "$(ss -Hltn "sport = :$port")" ]; do port=$((port + 1)); done
    echo "$port"
}

start_controller() {
    PORT=$(free_port "${KRING_DEMO_PORT:-8443}")
    URL=https://127.0.0.1:$PORT
    printf 'data_dir = "%s"\ndefault_storage_path = "%s"\n\n[api]\nlisten = "127.0.0.1:%s"\nadvertise = ["%s"]\n' \
        "$DEMO/controller" "$DEMO/volumes" "$PORT" "$URL" >"$DEMO/controller.toml"
    "$DEMO/bin/kring-controller" init --config "$DEMO/controller.toml" --cli-config "$DEMO/cli.toml"
    daemon controller user "$DEMO/bin/kring-controller" serve --config "$DEMO/controller.toml"
    await 30 controller curl -fsSk --max-time 2 -o /dev/null "$URL/readyz"
}

host_is_connected() { [ "$(kring host show demo-host -o json 2>/dev/null | jq -r .connection)" = connected ]; }

join_host() {
    local token port
    port=$(free_port 7443)
    token=$(kring host join-token -o json | jq -r .token)
    printf '[agent]\nlisten = "127.0.0.1:%s"\ndata_dir = "%s"\nrun_dir = "%s"\n' "$port" "$DEMO/agent" "$DEMO/agent-run" >"$DEMO/agent.toml"
    "${SUDO[@]}" "$DEMO/bin/kring-agent" join --config "$DEMO/agent.toml" --controller "$URL" "--token=$token" --name demo-host
    daemon agent root "$DEMO/bin/kring-agent" run --config "$DEMO/agent.toml"
    await 30 agent host_is_connected
}

make_image() {
    local firmware=${KRING_DEMO_FIRMWARE:-bios} args=()
    [ "$firmware" != uefi ] || args=(--uefi)
    case ${IMAGE:-} in
    '') local option=()
        [ "$firmware" != uefi ] || option=(--uefi)
        "$LAB/guest/build.sh" "${option[@]}" "$DEMO/guest.qcow2"
        kring image create demo-image --file "$DEMO/guest.qcow2" "${args[@]}" ;;
    http://*|https://*)
        kring image create demo-image --url "$IMAGE" "${args[@]}" ;;
    *)  [ -r "$IMAGE" ] || die "there is no file $IMAGE"
        kring image create demo-image --file "$(realpath "$IMAGE")" "${args[@]}" ;;
    esac
}

# A network that no route of this machine leads to.
free_cidr() {
    local second routes
    routes=$(ip -4 route show table all)
    for second in 77 78 79 80 81 82 83 84; do
        [[ $routes == *" 10.$second."* || $routes == *$'\n'"10.$second."* ]] && continue
        echo "10.$second.0.0/24"
        return
    done
    die "10.77.0.0/16 to 10.84.0.0/16 are all in use: set KRING_DEMO_CIDR"
}

make_network() {
    CIDR=${KRING_DEMO_CIDR:-$(free_cidr)}
    kring network create demo-net --kind nat --cidr "$CIDR"
}

make_vm() {
    local memory=128MiB
    [ -z "${IMAGE:-}" ] || memory=1GiB
    [ "${KRING_DEMO_FIRMWARE:-bios}" = bios ] || [ -n "${IMAGE:-}" ] || memory=192MiB
    [ -f "$DEMO/ssh_key" ] || ssh-keygen -q -t ed25519 -N '' -C kring-demo -f "$DEMO/ssh_key"
    if [ -n "${IMAGE:-}" ]; then
        printf '#cloud-config\nruncmd:\n  - echo "KRING-GUEST cloud-init done hostname=$(hostname)" >/dev/console\n' >"$DEMO/user-data"
    else
        printf '#!/bin/sh\necho "KRING-GUEST hello from user data on $(hostname)"\n' >"$DEMO/user-data"
    fi
    kring vm create "$VM" --image demo-image --vcpus 1 --memory "${KRING_DEMO_MEMORY:-$memory}" \
        --network demo-net --user-data "$DEMO/user-data" --ssh-key "$DEMO/ssh_key.pub"
    kring vm show "$VM" -o json >"$DEMO/vm.json"
    VM_ID=$(jq -r .id "$DEMO/vm.json")
    IP=$(jq -r '.nics[0].ip' "$DEMO/vm.json")
}

# Whether the guest's serial output has a line with this text.
guest_said() {
    local text
    text=$(kring vm log "$VM" 2>/dev/null | tr -d '\r') || return 1
    note "$(printf '%s' "$text" | tail -n 1 | tr -cd '[:print:]')"
    [[ $text == *"$1"* ]]
}
guest_has_address()  { guest_said "KRING-GUEST ip=$IP "; }
guest_has_metadata() { guest_said "KRING-GUEST instance-id=$VM_ID hostname=$VM user-data-sha256=$(sha256sum <"$DEMO/user-data" | cut -d' ' -f1)"; }
guest_is_ready()     { guest_said "KRING-GUEST ready instance-id=$VM_ID hostname=$VM"; }
guest_pings()        { ping -c 1 -W 1 "$IP" >/dev/null 2>&1; }
guest_serves()       { curl -fsS --max-time 3 "http://$IP/" 2>/dev/null | jq -e --arg id "$VM_ID" '.instance_id == $id and .ready' >/dev/null; }
SSH=(ssh -o BatchMode=yes -o ConnectTimeout=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR)
# Cloud images know their own user; root's answer to a login names it where it is refused.
guest_ssh() {
    local user
    for user in debian ubuntu cloud-user fedora rocky almalinux opensuse arch alpine root; do
        if [ "$("${SSH[@]}" -i "$DEMO/ssh_key" "$user@$IP" hostname 2>/dev/null </dev/null)" = "$VM" ]; then
            echo "$user" >"$DEMO/ssh_user"
            return 0
        fi
    done
    return 1
}

await_address()  { await 180 agent guest_has_address; }
await_metadata() { await 90 agent guest_has_metadata; }
await_ready()    { await 60 agent guest_is_ready; await 20 agent guest_pings; await 20 agent guest_serves; }
await_ping()     { await 900 agent guest_pings; }
await_ssh()      { await 900 agent guest_ssh; }

summary() {
    local mode
    mode=$(kring host show demo-host -o json | jq -r '.facts.virt_mode')
    printf '\n%s%s runs%s, %s after the start of the demo.\n\n' "$BOLD" "$VM" "$PLAIN" "$((SECONDS - STEPS_BEGAN)) s"
    printf '  Address        %s\n' "$IP"
    if [ -n "${IMAGE:-}" ]; then
        printf '  Log in         ssh -i %s %s@%s\n' "$DEMO/ssh_key" "$(cat "$DEMO/ssh_user")" "$IP"
    else
        printf '  It serves      curl http://%s/\n' "$IP"
    fi
    printf '  Console        %s vm console %s\n' "$DEMO/kring" "$VM"
    printf '  Command line   %s vm list   (%s --help)\n' "$DEMO/kring" "$DEMO/kring"
    printf '  Web API        %s/v1, described on %s/docs\n' "$URL" "$URL"
    printf '  Token and CA   %s\n' "$DEMO/cli.toml"
    printf '  Logs           %s\n' "$DEMO/{controller,agent,demo}.log"
    [ "$mode" = kvm ] || printf '  Note           this machine has no KVM: the guest is emulated, which is slow\n'
    printf '  To stop        make demo-stop\n'
}

up() {
    mkdir -p "$DEMO"
    lock "$DEMO.lock" 10
    mkdir -p "$DEMO" "$RUN"
    touch "$DEMO/.kring-demo"
    : >"$LOG"
    . "$LAB/progress.sh"
    trap 'code=$?; step_failed; stop_spinner; [ $code -eq 0 ] || printf "The log is %s. \"make demo\" tries again, \"make demo-stop\" cleans up.\n" "$LOG" >&7; exit $code' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    need_privileges
    [ -n "${KRING_DEMO_PROGRAMS:-}" ] || find_cargo
    [ ! -e /var/lib/kring-agent/identity ] ||
        die "this machine is a host of a Kring cloud already, and the demo would remove its VMs: use another machine"
    step "Packages installed" install_packages
    step "Programs built" build
    step "Earlier demo removed" remove_all
    mkdir -p "$RUN"
    remember_machine
    step "libvirt answers" start_libvirt
    step "Controller ready" start_controller
    step "Host joined" join_host
    step "Image ready" make_image
    step "Network made" make_network
    step "VM created and started" make_vm
    if [ -n "${IMAGE:-}" ]; then
        step "Guest answers to ping on $IP" await_ping
        step "Guest has its host name and lets the ssh key in" await_ssh
    else
        step "Guest got $IP by DHCP" await_address
        step "Guest fetched its metadata and user data" await_metadata
        step "Guest reports ready and answers on $IP" await_ready
    fi
    summary
}

# ----------------------------------------------------------------------------------------- stop

# Domains, networks, rules and files of the agent: the agent knows how to remove them. What it
# cannot do at once, while libvirt is still starting, it can a little later.
purge_agent() {
    local tries
    [ -x "$DEMO/bin/kring-agent" ] && [ -f "$DEMO/agent.toml" ] || return 0
    for tries in 1 1 2 2 3 0; do
        "${SUDO[@]}" "$DEMO/bin/kring-agent" purge --config "$DEMO/agent.toml" --yes && return 0
        sleep "$tries"
    done
    return 1
}

# Network namespaces, bridges and rules, in case that the agent could not remove them.
remove_networks() {
    local file suffix inode entry
    for file in "$DEMO"/agent-run/netns/kring-*; do
        [ -e "$file" ] || continue
        suffix=${file##*/kring-}
        inode=$("${SUDO[@]}" stat -L -c %i "$file")
        for entry in $("${SUDO[@]}" find /proc -maxdepth 3 -path '/proc/[0-9]*/ns/net' -lname "net:\[$inode\]" 2>/dev/null); do
            entry=${entry#/proc/}
            "${SUDO[@]}" kill -KILL "${entry%%/*}" 2>/dev/null || true
        done
        "${SUDO[@]}" umount -l "$file" 2>/dev/null || true
        for entry in "kv-$suffix" "kr-$suffix"; do "${SUDO[@]}" ip link del "$entry" 2>/dev/null || true; done
        "${SUDO[@]}" nft delete table ip kring 2>/dev/null || true
    done
}

# Domains that have a disk in the demo's folder, in case that the agent could not remove them.
remove_domains() {
    local domain xml
    libvirt_answers || return 0
    for domain in $(virsh list --all --uuid); do
        xml=$(virsh dumpxml "$domain" 2>/dev/null) || continue
        [[ $xml == *"'$DEMO/"* ]] || continue
        virsh destroy "$domain" 2>/dev/null || true
        virsh undefine "$domain" --nvram 2>/dev/null || virsh undefine "$domain" 2>/dev/null || true
    done
}

stop_libvirt() {
    # Before libvirt stops: what it made for itself in the firewall, when nothing was there before.
    if [ -f "$RUN/no-bridge-table" ] && "${SUDO[@]}" nft list table bridge nat 2>/dev/null |
        awk '/^\t\t/ && !/type filter hook/ { used = 1 } END { exit used }'; then
        "${SUDO[@]}" nft delete table bridge nat 2>/dev/null || true
    fi
    end_process "$(recorded libvirtd)" 20
    end_process "$(recorded virtlogd)" 10
    if [ -f "$RUN/libvirtd.unit" ] && [ -z "$(virsh list --name 2>/dev/null)" ]; then
        "${SUDO[@]}" systemctl stop libvirtd
    fi
    return 0
}

restore_forwarding() {
    [ -f "$RUN/ip_forward" ] && [ "$(cat "$RUN/ip_forward")" = 0 ] || return 0
    # Somebody else's virtual networks may need it by now.
    [ -z "$(virsh net-list --name 2>/dev/null)" ] || return 0
    echo 0 | "${SUDO[@]}" tee /proc/sys/net/ipv4/ip_forward >/dev/null
}

# Everything but the programs, which the next step needs.
remove_all() {
    local problems=0 kept
    mkdir -p "$RUN"
    if [ -f "$RUN/agent.process" ]; then end_process "$(recorded agent)" 20 || problems=1; fi
    if [ -f "$RUN/controller.process" ]; then end_process "$(recorded controller)" 20 || problems=1; fi
    # Removing domains needs libvirt, also when it was ended meanwhile.
    if [ -d "$DEMO/agent" ] && [ -x /usr/sbin/libvirtd ]; then start_libvirt; fi
    purge_agent || warn "kring-agent purge failed; going on without it"
    remove_domains || problems=1
    remove_networks || problems=1
    # libvirt keeps a log of each domain when the domain itself has gone; it begins with the command
    # line of QEMU, which names the demo's files.
    "${SUDO[@]}" sh -c "grep -lsF '$DEMO/' /var/log/libvirt/qemu/*.log | xargs -r rm -f"
    restore_forwarding || problems=1
    stop_libvirt || problems=1
    close_kvm || problems=1
    for kept in "$DEMO"/* "$DEMO"/.[!.]*; do
        case ${kept##*/} in bin|kring|demo.log|demo.log.note|.kring-demo|'*'|'.[!.]*') ;;
        *) "${SUDO[@]}" rm -rf "$kept" ;;
        esac
    done
    return $problems
}

stop() {
    if [ ! -e "$DEMO/.kring-demo" ]; then
        [ ! -d "$DEMO" ] || rmdir "$DEMO" 2>/dev/null || die "$DEMO was not made by the demo; it is left alone"
        say "There is no demo to stop."
        return 0
    fi
    need_privileges
    lock "$DEMO.lock" 10
    mkdir -p "$RUN"
    : >"$LOG"
    . "$LAB/progress.sh"
    trap 'code=$?; step_failed; stop_spinner; [ $code -eq 0 ] || printf "The log is %s.\n" "$LOG" >&7; exit $code' EXIT
    step "Demo stopped: processes, domains, networks, rules and files removed" remove_all
    "${SUDO[@]}" rm -rf "$DEMO"
    rm -f "$DEMO.lock"
}

case ${1:-} in
up)   up ;;
stop) stop ;;
*)    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
