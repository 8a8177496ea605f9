#!/usr/bin/env bash
# Installs the packages on one booted machine and does with them what an operator does: controller, agent,
# a VM, restarts, kills, an upgrade, backup and restore, removal and coming back, purge.
#
#   tests/lab/packages-check.sh [FOLDER]    packages that are there already; otherwise quick ones are made
#
# KRING_PACKAGES_BUILT=1 says that the programs are built (CI has built them for the tests).
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
need_privileges
NAME=pkg-$$
. "$LAB/on-machine.sh"

# A script, inside. KRING_CONFIG is the admin's. In it `COMMAND | none`, `refused COMMAND` and `says TEXT COMMAND`
# fail where there is a line, where the command succeeds (which `! COMMAND` does not, under `set -e`), and where it
# does not fail with these words.
inside() {
    on env KRING_CONFIG=/etc/kring/cli.toml bash -euc "$PRELUDE$1" -- "${@:2}"
}
PRELUDE=$NONE'refused() { if "$@" >/dev/null 2>&1; then echo "was not refused: $*" >&2; return 1; fi; }
says() {
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then echo "was not refused: $*" >&2; return 1; fi
    case $said in *"$text"*) ;; *) printf "%s\ndoes not say: %s\n%s\n" "$*" "$text" "$said" >&2; return 1 ;; esac
}
address=$(hostname -I | cut -d" " -f1)
token() { kring host join-token -o json "$@" | sed -n "s/.*\"token\": *\"\([^\"]*\)\".*/\1/p"; }
'

# The same packages under a newer version, as an upgrade needs them.
newer() {
    local package dir
    for package in "$WORK"/old/*.deb; do
        dir=$WORK/unpacked
        dpkg-deb -R "$package" "$dir"
        sed -i 's/^Version: .*/&.next/' "$dir/DEBIAN/control"
        dpkg-deb --root-owner-group -Zgzip -z1 -b "$dir" "$WORK/new" >/dev/null
        rm -rf "$dir"
    done
}

# ------------------------------------------------------------------------------------------------

part 'packages'
FOLDER=${1:-}
if [ -z "$FOLDER" ]; then
    "$LAB/../../packaging/build.sh" --quick --deb ${KRING_PACKAGES_BUILT:+--built} "$WORK/made" >"$WORK/log" 2>&1 ||
        { tail -n 30 "$WORK/log"; die "the packages could not be made"; }
    FOLDER=$WORK/made
fi
mkdir -p "$WORK/old" "$WORK/new" "$WORK/try"
cp "$FOLDER"/kring-sim_*_amd64.deb "$WORK/try"
for name in kring kring-controller kring-agent; do cp "$FOLDER/${name}"_*_amd64.deb "$WORK/old"; done
newer
GUEST=$("$LAB/guest/build.sh")

part 'what lintian says'
lintian --allow-root --fail-on error \
    "$WORK"/old/*.deb "$WORK"/try/*.deb >"$WORK/lint" 2>&1 || { cat "$WORK/lint"; die "lintian found something"; }

part 'a machine boots'
"$LAB/machine.sh" up "$NAME" --ready >/dev/null
ROOT=/proc/$("$LAB/machine.sh" show "$NAME" | sed -n 's/^pid=//p')/root/root
"${SUDO[@]}" mkdir "$ROOT/old" "$ROOT/new" "$ROOT/try"
"${SUDO[@]}" cp "$WORK"/old/*.deb "$ROOT/old"
"${SUDO[@]}" cp "$WORK"/new/*.deb "$ROOT/new"
"${SUDO[@]}" cp "$WORK"/try/*.deb "$ROOT/try"
"${SUDO[@]}" cp "$GUEST" "$ROOT/guest.qcow2"

part 'install'
inside 'apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends /root/old/*.deb >/dev/null'
inside 'systemctl is-active --quiet kring-controller
    [ "$(stat -c "%U %a" /var/lib/kring)" = "kring 700" ]
    [ "$(stat -c "%U:%G %a" /etc/kring/controller.toml)" = "root:kring 640" ]
    [ "$(ps -o user= -p "$(systemctl show -P MainPID kring-controller)")" = kring ]
    # An agent without a cloud waits, and is no failure.
    [ "$(systemctl show -P ActiveState kring-agent)" = inactive ]
    [ "$(systemctl is-system-running)" = running ]
    journalctl -u kring-controller | grep -i "shown only now" | none
    man -w kring-vm-create kring-controller kring-agent >/dev/null 2>&1 || [ -f /usr/share/man/man8/kring-agent.8.gz ]
    exposure=$(systemd-analyze security --no-pager kring-controller | sed -n "s/.*level for .*: \([0-9.]*\) .*/\1/p")
    echo "exposure of the controller $exposure, of the agent $(systemd-analyze security --no-pager kring-agent | sed -n "s/.*level for .*: \([0-9.]*\) .*/\1/p")"
    awk -v e="$exposure" "BEGIN { exit !(e <= 2.0) }"'

part 'simulated hosts, beside it'
inside 'says "install the package kring-sim" kring dev
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends /root/try/*.deb >/dev/null
    systemd-run --quiet --unit try --uid nobody -p KillSignal=SIGINT -p StandardOutput=file:/root/try.log kring dev --hosts 5'
await 120 'grep -q KRING_CONFIG /root/try.log'
inside 'KRING_CONFIG=$(sed -n "s/.*KRING_CONFIG=//p" /root/try.log)
    kring image create tiny --url http://images.example/tiny.qcow2
    kring network create lan --cidr 10.77.0.0/24
    kring vm create one --image tiny --vcpus 1 --memory 256MiB --network lan
    [ "$(kring vm list -q "state = running" --count) $(kring host list --count)" = "1 5" ]
    systemctl stop try
    ls -d /tmp/kring-dev-* 2>/dev/null | none
    apt-get -qq -o Dpkg::Use-Pty=0 purge -y kring-sim >/dev/null'

part 'host and VM'
inside 'kring-controller admin-token --cli-config /etc/kring/cli.toml >/dev/null
    find /var/lib/kring ! -user kring | none
    token --ttl 10s >/root/short
    token >/root/token
    says "kring host join-token" kring-agent join --controller "https://$address:8443" --token "0$(cat /root/token)"
    kring-agent join --controller "https://$address:8443" --token "$(cat /root/token)" 2>/dev/null
    systemctl start kring-agent'
await 30 'kring host list -q "connection = connected" --count | grep -qx 1'
inside 'kring image create guest --file /root/guest.qcow2
    kring network create lan --cidr 10.77.0.0/24
    kring vm create v1 --image guest --vcpus 1 --memory 128MiB --network lan'
await 180 'kring vm log v1 | grep -q "KRING-GUEST ready"'

# What must outlive all that happens to the daemons.
# Not the QEMU that libvirt asks for a moment, after a start of its own, what it can do.
GUESTS='echo "$(pgrep -f "[-]name guest=") $(pgrep -x dnsmasq | tr "\n" " ")"'
guests=$(inside "$GUESTS")
case $guests in [0-9]*) ;; *) die "no guest runs: $guests" ;; esac
ticking='before=$(kring vm log v1 | grep -c tick); for i in $(seq 40); do sleep 0.5; [ "$(kring vm log v1 | grep -c tick)" -gt "$before" ] && exit 0; done; exit 1'

part 'restarts and kills'
inside 'systemctl restart kring-agent; kill -KILL "$(systemctl show -P MainPID kring-agent)"'
await 30 'systemctl is-active --quiet kring-agent && kring host list -q "connection = connected" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after restarts of the agent'
inside 'for unit in kring-controller kring-agent; do
        mkdir -p /run/systemd/system/$unit.service.d
        printf "[Service]\nWatchdogSec=6\n" >/run/systemd/system/$unit.service.d/watchdog.conf
    done
    systemctl daemon-reload
    systemctl restart kring-controller kring-agent
    sleep 8
    systemctl is-active --quiet kring-controller kring-agent
    [ "$(systemctl show -P NRestarts kring-controller)" = 0 ]
    kill -STOP "$(systemctl show -P MainPID kring-controller)" "$(systemctl show -P MainPID kring-agent)"'
await 60 '[ "$(systemctl show -P NRestarts kring-controller)" -ge 1 ] && [ "$(systemctl show -P NRestarts kring-agent)" -ge 1 ]
    systemctl is-active --quiet kring-controller kring-agent'
inside 'rm -r /run/systemd/system/kring-*.d; systemctl daemon-reload'
await 30 'kring host list -q "connection = connected" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after the watchdog'

part 'bad input and what is missing'
inside 'again() { says "$1" kring-agent --data-dir /root/second --run-dir /root/second/run join --name second --controller "https://$address:$3" --token "$2"; }
    other=secret.$(printf "%064d" 0)
    again "has expired" "$(cat /root/short)" 8443
    again "was used by another host" "$(cat /root/token)" 8443
    again "cloud that made the token" "$other" 8443
    again "port 8443 must be reachable" "$(cat /root/token)" 9
    again "copy all of it" half 8443
    systemctl stop kring-agent
    says "kring-agent leave" kring-agent join --controller "https://$address:8443" --token "$other"
    systemctl start kring-agent
    grep -q "vmx\|svm" /proc/cpuinfo || kring-agent check 2>&1 | grep -q "are emulated"
    mkdir /mnt/full
    mount -t tmpfs -o size=64m none /mnt/full
    says "make room" kring-agent --data-dir /mnt/full check
    says "make room" kring-controller --set data_dir=/mnt/full check
    umount /mnt/full
    rm -r /mnt/full /root/second'
inside 'systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd.service 2>/dev/null
    says "systemctl enable --now libvirtd" kring-agent check
    kring vm list -q "state = stopped" --count | grep -qx 0
    systemctl start libvirtd.socket libvirtd.service'
await 60 'kring host list -q "connection = connected" --count | grep -qx 1 && kring vm list -q "state = running" --count | grep -qx 1'
inside 'cp -p /etc/kring/controller.toml /etc/kring/agent.toml /root
    for name in controller agent; do
        printf "[log]\nfliter = \"info\"\n" >/etc/kring/$name.toml
        for part in /etc/kring/$name.toml "line 2" fliter; do says "$part" kring-$name check; done
    done
    refused systemctl restart kring-controller
    journalctl -u kring-controller | grep -q "/etc/kring/controller.toml.*line 2"
    cat /root/controller.toml >/etc/kring/controller.toml
    cat /root/agent.toml >/etc/kring/agent.toml
    chmod 600 /etc/kring/controller.toml
    says "/etc/kring/controller.toml cannot be read" runuser -u kring -- kring-controller check
    chmod 640 /etc/kring/controller.toml'
await 60 'systemctl is-active --quiet kring-controller && kring host list -q "connection = connected" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after what went wrong'

part 'upgrade, broken off'
# What is killed in the middle is mended as the documents say, and what ran goes on.
inside 'for seconds in 0.1 0.4 0.8 1.5; do
        timeout -s KILL $seconds dpkg --force-confold -i /root/new/*.deb >/dev/null 2>&1 </dev/null || true
        # One that is killed while it writes to the disk has its lock until that is done.
        while pgrep -x dpkg >/dev/null; do sleep 0.1; done
    done
    systemctl kill --kill-whom=main -s KILL kring-agent || true
    dpkg --configure -a >/root/configure.log 2>&1 </dev/null || { cat /root/configure.log; false; }
    apt-get -qq -o Dpkg::Use-Pty=0 install -y /root/new/*.deb >/dev/null </dev/null
    [ "$(dpkg-query -W -f "\${db:Status-Abbrev}\${Version} " kring kring-controller kring-agent | tr " " "\n" | grep -c "next")" = 3 ]
    dpkg --audit | none
    # And back, for a whole one.
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --allow-downgrades /root/old/*.deb >/dev/null </dev/null'
await 30 'kring host list -q "connection = connected" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after upgrades that broke off'

part 'upgrade'
inside 'echo "# mine" >>/etc/kring/controller.toml
    apt-get -qq -o Dpkg::Use-Pty=0 install -y /root/new/*.deb >/dev/null </dev/null
    [ "$(dpkg-query -W -f "\${Version} " kring kring-controller kring-agent | tr " " "\n" | grep -c next)" = 3 ]
    tail -n 1 /etc/kring/controller.toml | grep -qx "# mine"
    systemctl is-active --quiet kring-controller'
await 30 'kring host list -q "connection = connected" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after the upgrade'
inside "$ticking"

part 'backup and restore'
inside 'kring-controller backup /root/backup
    kring network create made-after-the-backup --cidr 10.78.0.0/24
    systemctl restart kring-controller
    systemctl stop kring-controller
    mv /var/lib/kring /root/lost
    systemd-tmpfiles --create kring-controller.conf
    kring-controller restore /root/backup
    find /var/lib/kring ! -user kring | none
    systemctl start kring-controller
    rm -rf /root/lost'
await 30 'kring host list -q "connection = connected" --count | grep -qx 1'
inside 'refused kring network show made-after-the-backup
    kring vm show v1 -o json | grep -q running
    kring vm pause v1; kring vm resume v1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after the restore'

part 'remove the agent, and install it again'
inside 'apt-get -qq -o Dpkg::Use-Pty=0 remove -y kring-agent >/dev/null
    [ ! -e /usr/bin/kring-agent ]
    [ -f /var/lib/kring-agent/identity/cert.pem ] && [ -f /etc/kring/agent.toml ]'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server without an agent'
inside 'apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends /root/new/kring-agent_*.deb >/dev/null
    systemctl is-active --quiet kring-agent'
await 60 'kring host list -q "connection = connected" --count | grep -qx 1 && kring vm list -q "state = running" --count | grep -qx 1'
same "$guests" "$(inside "$GUESTS")" 'guest and DHCP server after the agent came back'

part 'purge'
inside 'apt-get -qq -o Dpkg::Use-Pty=0 purge -y kring-agent >/dev/null 2>/root/purge.log
    grep -q "guests still run" /root/purge.log && [ -d /var/lib/kring-agent ]
    pgrep -x qemu-system-x86 >/dev/null
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends /root/new/kring-agent_*.deb >/dev/null
    systemctl stop kring-agent
    kring-agent purge --yes 2>/dev/null
    apt-get -qq -o Dpkg::Use-Pty=0 purge -y kring kring-controller kring-agent >/dev/null'
inside 'find / -xdev \( -path /proc -o -path /sys -o -path /root -o -path /var/log \) -prune -o -iname "*kring*" -print |
        grep -v "^/var/cache/apt\|^/var/lib/apt" | none
    ps -eo comm= | grep -E "^(qemu|dnsmasq|kring)" | none
    ip -br link | grep -v "^lo\|^host0" | none
    nft list ruleset | grep -i kring | none
    systemctl list-unit-files | grep kring | none
    [ -z "$(systemctl list-units --failed --no-legend)" ]'
say "=== the packages are as they should be ($((SECONDS - BEGAN)) s)"
