#!/usr/bin/env bash
# The rpms: what rpmlint says of them, and what becomes of them on a booted machine: install, controller, agent
# and a VM, upgrade, removal. The machine is a Debian, whose libraries have other packages' names: so
# dependencies are looked at here, and left out there.
#
#   tests/lab/rpm-check.sh [--if-possible]    (and nothing, where what makes and lints rpms is not installed)
#
# Packages of a quick build are made. KRING_PACKAGES_BUILT=1 says that the programs are built.
set -euo pipefail
LAB=$(cd "$(dirname "$0")" && pwd)
. "$LAB/lib.sh"
find_cache
if [ "${1:-}" = --if-possible ] && ! { command -v rpmlint && [ -x "$CACHE/tools/bin/cargo-generate-rpm" ]; } >/dev/null; then
    say "cargo-generate-rpm or rpmlint is not installed: the rpms were not looked at (make rpm-check)"
    exit 0
fi
need_privileges
NAME=rpm-$$
. "$LAB/on-machine.sh"

# A script, inside, with the admin's access. `rpm` is Debian's, which has to be told that it is meant.
inside() {
    on env KRING_CONFIG=/etc/kring/cli.toml bash -euc "$NONE"'rpm() { command rpm --force-debian "$@"; }
'"$1"
}

part 'packages, and those of the next revision'
build() { "$LAB/../../packaging/build.sh" --quick --rpm --no-symbols "$@" >"$WORK/log" 2>&1 || { tail -n 30 "$WORK/log"; die "the packages could not be made"; }; }
build ${KRING_PACKAGES_BUILT:+--built} "$WORK/old"
build --built --revision 2 "$WORK/new"
GUEST=$("$LAB/guest/build.sh")

part 'what rpmlint says, and what they depend on'
rpmlint --config "$LAB/../../packaging/rpmlint.toml" "$WORK"/old/*.rpm >"$WORK/lint" 2>&1 || true
grep -q '0 errors' "$WORK/lint" || { cat "$WORK/lint"; die "rpmlint found errors"; }
tail -n 1 "$WORK/lint"
for name in 'kring-agent qemu-kvm' 'kring-agent libvirt.so.0()(64bit)' 'kring-controller systemd' 'kring libc.so.6()(64bit)'; do
    rpm -qp --requires "$WORK/old/${name%% *}"-[0-9]*.rpm | grep -qxF -- "${name#* }" || die "${name%% *} does not require ${name#* }"
done
# What RHEL 9 and its kin have.
newest=$(rpm -qp --requires "$WORK"/old/kring{,-controller,-agent}-[0-9]*.rpm | sed -n 's/.*(GLIBC_\([0-9.]*\)).*/\1/p' | sort -V | tail -n 1)
say "    the C library must be $newest or newer"

part 'install'
"$LAB/machine.sh" up "$NAME" --ready >/dev/null
ROOT=/proc/$("$LAB/machine.sh" show "$NAME" | sed -n 's/^pid=//p')/root/root
for folder in old new; do
    "${SUDO[@]}" mkdir "$ROOT/$folder"
    for name in kring kring-controller kring-agent; do "${SUDO[@]}" cp "$WORK/$folder/$name"-[0-9]*.rpm "$ROOT/$folder"; done
done
"${SUDO[@]}" cp "$GUEST" "$ROOT/guest.qcow2"
inside 'apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends rpm >/dev/null 2>&1
    rpm -i --nodeps /root/old/*.rpm 2>&1 | grep -v "RPM should not be used\|you know what you are doing\|^Creating " | none
    rpm -V kring kring-agent kring-controller --nodeps | none
    [ "$(stat -c "%U:%G %a" /etc/kring/controller.toml)" = "root:kring 640" ]
    [ "$(stat -c "%U %a" /var/lib/kring)" = "kring 700" ]
    systemctl enable --now kring-controller kring-agent 2>/dev/null
    systemctl is-active --quiet kring-controller
    [ "$(systemctl show -P ActiveState kring-agent)" = inactive ]
    kring-controller admin-token --cli-config /etc/kring/cli.toml >/dev/null
    token=$(kring host join-token -o json | sed -n "s/.*\"token\": *\"\([^\"]*\)\".*/\1/p")
    kring-agent join --controller "https://$(hostname -I | cut -d" " -f1):8443" --token "$token" 2>/dev/null
    systemctl start kring-agent'
connected='kring host list -q "connection = connected" --count | grep -qx 1'
await 30 "$connected"
inside 'kring image create guest --file /root/guest.qcow2
    kring network create lan --cidr 10.77.0.0/24
    kring vm create v1 --image guest --vcpus 1 --memory 128MiB --network lan'
await 180 'kring vm log v1 | grep -q "KRING-GUEST ready"'
pids() { inside 'systemctl show -P MainPID kring-controller kring-agent | tr "\n" " "'; }
guests() { inside 'echo "$(pgrep -f "[-]name guest=") $(pgrep -x dnsmasq | tr "\n" " ")"'; }
daemons=$(pids) guests=$(guests)

part 'upgrade'
inside 'echo "# mine" >>/etc/kring/controller.toml
    rpm -U --nodeps /root/new/*.rpm 2>&1 | grep -v "RPM should not be used\|you know what you are doing" | none
    rpm -q --qf "%{RELEASE}\n" kring kring-agent kring-controller | grep -vx 2 | none
    tail -n 1 /etc/kring/controller.toml | grep -qx "# mine"
    systemctl is-active --quiet kring-controller kring-agent'
[ "$(pids)" != "$daemons" ] || die "the daemons were not started anew"
await 30 "$connected"
same "$guests" "$(guests)" 'guest and DHCP server after the upgrade'

part 'removal'
inside 'rpm -e --nodeps kring kring-agent kring-controller >/dev/null 2>&1
    rpm -qa | grep kring | none
    systemctl list-unit-files | grep kring | none
    ps -eo comm= | grep "^kring" | none
    [ -f /var/lib/kring-agent/identity/cert.pem ] && [ -d /var/lib/kring/pki ]
    # What was changed by hand is kept.
    tail -n 1 /etc/kring/controller.toml.rpmsave | grep -qx "# mine"
    [ -z "$(systemctl list-units --failed --no-legend)" ]'
same "$guests" "$(guests)" 'guest and DHCP server without Kring'
say "=== the rpms are as they should be ($((SECONDS - BEGAN)) s)"
