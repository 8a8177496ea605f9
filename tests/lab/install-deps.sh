#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that Kring needs, and only those that are missing.
#
#   tests/lab/install-deps.sh SET…
#
# Sets: build  compiler and libraries that the programs are linked with
#       run    what a host needs: libvirt, QEMU, dnsmasq, nftables
#       guest  what the test guest's disk image is made with
#       test   servers that tests start for themselves
#       cloud  what the cloud-init image is made with
#       debs      what Debian packages are made with, also cargo-deb (built once, into the cache)
#       lint      what they are looked at with
#       packages  the same, and cargo-generate-rpm
#       rpms      what rpms are looked at with
#       machine   what whole machines are booted with (machine.sh)
#       ansible   what the playbook is played with
#
# It starts no service: whoever needs one starts it. Where systemd runs, the packages themselves
# start libvirtd when they are installed, as on any host.
set -euo pipefail
cd "$(dirname "$0")"
. ./lib.sh

packages_of() {
    case $1 in
    build) echo gcc libc6-dev make pkg-config libvirt-dev libsystemd-dev ca-certificates git ;;
    run)   echo libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-daemon-config-nwfilter \
                libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base nftables iptables ebtables \
                iproute2 iputils-ping openssh-client ovmf seabios ipxe-qemu curl jq procps util-linux ;;
    guest) echo busybox-static cpio gzip xz-utils zstd mtools syslinux syslinux-common \
                qemu-utils binutils systemd-boot-efi ;;
    test)  echo postgresql rabbitmq-server libfaketime ;;
    debs) packages_of build; echo binutils dpkg-dev jq ;;
    packages) packages_of debs; echo rpm ;;
    lint) echo lintian ;;
    rpms) echo rpm rpmlint ;;
    ansible) echo ansible-core ansible-lint python3-apt ;;
    machine) echo debootstrap systemd-container openssh-client libvirt-clients iproute2 util-linux jq curl python3 ;;
    cloud) packages_of guest; echo debootstrap e2fsprogs fdisk ;;
    *)     die "no set of packages is named '$1'; there are: build run guest test cloud debs lint packages rpms machine ansible" ;;
    esac
}

# Prints the packages among its arguments that are not installed.
missing_of() {
    local package
    declare -A installed=()
    while read -r status package; do
        [ "$status" = installed ] && installed[$package]=1
    done < <(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
    for package in "$@"; do
        [ -n "${installed[$package]:-}" ] || printf '%s\n' "$package"
    done
}

apt() {
    "${SUDO[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get \
        -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@"
}

# A newer qemu-utils than this release's, such as from backports, does not go with this release's
# qemu-system: then it is taken back to the release's version.
install_packages() {
    local log codename
    log=$(mktemp)
    # shellcheck disable=SC2064 # the name is meant now
    trap "rm -f '$log'" RETURN
    # apt may also take what is in the way away, although it is wanted.
    if apt install -y --no-install-recommends --no-remove "$@" >"$log" 2>&1; then return 0; fi
    if grep -q 'held broken packages\|remove is disabled' "$log" && [ -z "$(missing_of qemu-utils)" ]; then
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
        say "  the installed qemu-utils is newer than $codename's QEMU: going back to $codename's"
        if apt install -y --no-install-recommends --no-remove --allow-downgrades "$@" \
            "qemu-utils/$codename" "qemu-block-extra/$codename" >>"$log" 2>&1; then return 0; fi
    fi
    tail -n 30 "$log" >&2
    die "apt could not install: $*"
}

# The packages of PostgreSQL and RabbitMQ start a server of their own when they are installed. Tests
# start theirs, so the starting is forbidden meanwhile by Debian's own means for that: a policy file, which is marked,
# so that one left by a killed run is recognised and removed.
POLICY=/usr/sbin/policy-rc.d
POLICY_MARK='# made by kring tests/lab/install-deps.sh, for the time of an installation'
allow_services() {
    if [ -f "$POLICY" ] && grep -qxF "$POLICY_MARK" "$POLICY"; then "${SUDO[@]}" rm -f "$POLICY"; fi
}
forbid_services() {
    [ -e "$POLICY" ] && return 0
    trap allow_services EXIT
    printf '#!/bin/sh\n%s\nexit 101\n' "$POLICY_MARK" | "${SUDO[@]}" tee "$POLICY" >/dev/null
    "${SUDO[@]}" chmod 755 "$POLICY"
}

# A broker that was not on this machine before is not to come up at its next boot either. (An idle
# PostgreSQL is left as Debian has it: hosts may be meant to have one.)
disable_new() {
    has_systemd || return 0
    case " $* " in *" rabbitmq-server "*) ;; *) return 0 ;; esac
    "${SUDO[@]}" systemctl disable --quiet rabbitmq-server.service epmd.socket epmd.service 2>/dev/null || true
}

main() {
    [ $# -gt 0 ] || die "usage: $0 SET…   (build run guest test cloud debs lint packages rpms machine ansible)"
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
        die "this needs Debian 12 or Ubuntu 24.04, or newer; elsewhere install by hand what $0 lists"
    local set wanted=() missing=() quiet=()
    for set in "$@"; do
        # shellcheck disable=SC2207 # package names have no spaces
        wanted+=($(packages_of "$set"))
    done
    mapfile -t missing < <(missing_of "${wanted[@]}" | sort -u)
    [ ${#missing[@]} -gt 0 ] || return 0

    need_privileges
    # This file is the lock: it is there already, and nothing is left behind.
    exec 9<install-deps.sh
    flock -w 900 9 || die "another installation does not end"
    allow_services
    mapfile -t missing < <(missing_of "${wanted[@]}" | sort -u)
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing packages: ${missing[*]}"
    apt update -qq >/dev/null || warn "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2207
    quiet=($(comm -12 <(printf '%s\n' "${missing[@]}") <(packages_of test | tr ' ' '\n' | sort)))
    if [ ${#quiet[@]} -gt 0 ]; then
        forbid_services
        install_packages "${quiet[@]}"
        allow_services
        disable_new "${quiet[@]}"
        # shellcheck disable=SC2207
        missing=($(comm -23 <(printf '%s\n' "${missing[@]}") <(printf '%s\n' "${quiet[@]}")))
    fi
    [ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
}

# Programs that make packages, at fixed versions, into the cache: no distribution has them. Speed is not
# what they are chosen for, so they are built fast rather than to be fast.
CARGO_DEB=cargo-deb@3.8.0
CARGO_RPM=cargo-generate-rpm@0.21.1
cargo_tools() {
    local tool wanted=()
    find_cache
    command -v cargo >/dev/null || PATH=$PATH:${HOME:-}/.cargo/bin
    command -v cargo >/dev/null || die "there is no Rust toolchain: see https://rustup.rs"
    for tool in "$@"; do
        grep -qsF "\"${tool%@*} ${tool#*@} " "$CACHE/tools/.crates2.json" || wanted+=("$tool")
    done
    [ ${#wanted[@]} -gt 0 ] || return 0
    lock "$CACHE/tools.lock" 1800
    for tool in "${wanted[@]}"; do
        say "installing $tool into $CACHE/tools (once, some minutes)"
        CARGO_TARGET_DIR=$CACHE/tools/target CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0 \
            cargo install --quiet --locked "$tool" --root "$CACHE/tools" || die "$tool could not be installed"
    done
    rm -rf "$CACHE/tools/target"
    exec 9>&-
}

main "$@"
case " $* " in
*' packages '*) cargo_tools "$CARGO_DEB" "$CARGO_RPM" ;;
*' debs '*) cargo_tools "$CARGO_DEB" ;;
esac
