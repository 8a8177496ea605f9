#!/usr/bin/env bash
# Builds a cloud image of Debian 12 with cloud-init and sshd, to prove host name, ssh key, network
# and user data with the software that users' images have. Slow (minutes): for end-to-end tests.
#
#   tests/lab/guest/build-cloud.sh [OUT.qcow2]
#
# A FAT partition with syslinux and the kernel, and an ext4 root that cloud-init grows. It needs
# root for debootstrap, but no loop device and no mount. Kept in the cache as build.sh does.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../lib.sh"
OUT=${1:-}
MIRROR=${KRING_DEBIAN_MIRROR:-http://deb.debian.org/debian}
SUITE=bookworm
ROOT_MIB=1200
BOOT_MIB=64
CMDLINE='root=LABEL=cloudroot rw console=tty0 console=ttyS0,115200n8 net.ifnames=0 mitigations=off'

find_cache
STORE=$CACHE/guest
mkdir -p "$STORE"
IMAGE=$STORE/cloud-guest-$(sha256sum "$here/build-cloud.sh" | cut -c1-16).qcow2
deliver() {
    if [ -n "$OUT" ]; then
        mkdir -p "$(dirname "$OUT")"
        cp --reflink=auto "$IMAGE" "$OUT.part"
        mv "$OUT.part" "$OUT"
    fi
    say "${OUT:-$IMAGE}"
    exit 0
}
[ -f "$IMAGE" ] && deliver
need_privileges
lock "$STORE/cloud.lock" 3600
[ -f "$IMAGE" ] && deliver

work=$STORE/cloud.work
unmount() { for at in proc sys dev/pts dev; do "${SUDO[@]}" umount -l "$work/root/$at" 2>/dev/null || true; done; }
unmount
"${SUDO[@]}" rm -rf "$work"
mkdir -p "$work"
trap 'unmount; "${SUDO[@]}" rm -rf "$work"' EXIT

say "  debootstrap of $SUITE" >&2
"${SUDO[@]}" debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,udev,ca-certificates \
    "$SUITE" "$work/root" "$MIRROR" >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; die "debootstrap failed"; }

say "  kernel and settings" >&2
"${SUDO[@]}" env MIRROR="$MIRROR" SUITE="$SUITE" bash -euo pipefail -s "$work/root" >"$work/log" 2>&1 <<'SETUP' || { tail -n 20 "$work/log" >&2; die "the image could not be set up"; }
root=$1
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# The kernel's and udev's scripts look for devices; what they find here must not matter.
mkdir -p "$root/etc/initramfs-tools/conf.d"
printf 'MODULES=list\n' >"$root/etc/initramfs-tools/conf.d/modules"
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >>"$root/etc/initramfs-tools/modules"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" apt-get -q update
chroot "$root" apt-get -q install -y --no-install-recommends ifupdown isc-dhcp-client iproute2 iputils-ping \
    openssh-server sudo e2fsprogs cloud-guest-utils fdisk initramfs-tools zstd netbase kmod procps cloud-init
chroot "$root" apt-get -q install -y --no-install-recommends linux-image-cloud-amd64
rm -f "$root/etc/resolv.conf"
echo 'LABEL=cloudroot / ext4 defaults 0 1' >"$root/etc/fstab"
: >"$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id"
echo localhost >"$root/etc/hostname"
printf 'auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n' >"$root/etc/network/interfaces"
# As Debian's own cloud images have it: the user is called debian and may become root.
printf 'apt:\n  preserve_sources_list: true\nlocale: false\nmanage_etc_hosts: true\n' >"$root/etc/cloud/cloud.cfg.d/10_image.cfg"
chroot "$root" systemctl enable serial-getty@ttyS0.service ssh.service
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
umount "$root/sys" "$root/proc"
SETUP

say "  disk image" >&2
disk=$work/disk.raw
boot_at=$((2048 * 512)) root_at=$(((BOOT_MIB + 1) * 1048576))
truncate -s $((root_at + ROOT_MIB * 1048576)) "$disk"
mformat -i "$disk@@$boot_at" -T $((BOOT_MIB * 2048)) -h 64 -s 32 -H 2048 -c 4 -v BOOT ::
"${SUDO[@]}" cat "$work"/root/boot/vmlinuz-* >"$work/vmlinuz"
"${SUDO[@]}" cat "$work"/root/boot/initrd.img-* >"$work/initrd"
printf 'SERIAL 0 115200\nDEFAULT linux\nPROMPT 0\nLABEL linux\n  LINUX /vmlinuz\n  INITRD /initrd\n  APPEND %s\n' "$CMDLINE" >"$work/syslinux.cfg"
for file in vmlinuz initrd syslinux.cfg; do mcopy -i "$disk@@$boot_at" "$work/$file" "::$file"; done
syslinux --install --offset "$boot_at" "$disk"
dd if=/usr/lib/syslinux/mbr/mbr.bin of="$disk" bs=440 count=1 conv=notrunc status=none
printf 'label: dos\nstart=2048, size=%s, type=e, bootable\nstart=%s, size=%s, type=83\n' \
    $((BOOT_MIB * 2048)) $((root_at / 512)) $((ROOT_MIB * 2048)) | sfdisk -q --no-reread --no-tell-kernel "$disk"
"${SUDO[@]}" mke2fs -q -F -t ext4 -L cloudroot -d "$work/root" -E "offset=$root_at" "$disk" "${ROOT_MIB}M"
qemu-img convert -c -f raw -O qcow2 "$disk" "$work/disk.qcow2"
mv "$work/disk.qcow2" "$IMAGE"
find "$STORE" -maxdepth 1 -name 'cloud-guest-*.qcow2' ! -path "$IMAGE" -delete
deliver
