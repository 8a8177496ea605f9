//! The header of qcow2, versions 2 and 3: `docs/interop/qcow2.rst` of QEMU.

use super::{MAX_VIRTUAL_SIZE, Rejected};

/// The first four bytes.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";

/// Length of the header of version 2, and of the least header of version 3.
const V2_LEN: u64 = 72;
const V3_LEN: u64 = 104;
/// QEMU's own limit of the level 1 table: 32 MiB.
const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's own limit of the reference count table: 8 MiB.
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// More header extensions than any program writes.
const MAX_EXTENSIONS: usize = 64;

const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

/// Reads big-endian numbers at fixed places; beyond the end the image is cut off.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Result<[u8; N], Rejected> {
        usize::try_from(at).ok().and_then(|at| self.0.get(at..)?.first_chunk::<N>()).copied().ok_or(Rejected::Truncated)
    }

    fn u32(&self, at: u64) -> Result<u32, Rejected> {
        self.bytes(at).map(u32::from_be_bytes)
    }

    fn u64(&self, at: u64) -> Result<u64, Rejected> {
        self.bytes(at).map(u64::from_be_bytes)
    }
}

/// Checks the header and answers with the virtual size.
pub(super) fn inspect(head: &[u8], file_size: u64) -> Result<u64, Rejected> {
    let read = Reader(head);
    let version = read.u32(4)?;
    if !matches!(version, 2 | 3) {
        return Err(Rejected::OtherFormat("qcow of a version other than 2 and 3"));
    }
    if read.u64(8)? != 0 || read.u32(16)? != 0 {
        return Err(Rejected::Dependent("a backing file"));
    }
    if read.u32(32)? != 0 {
        return Err(Rejected::Feature("is encrypted"));
    }
    if read.u32(60)? != 0 {
        return Err(Rejected::Feature("has internal snapshots"));
    }
    let cluster_bits = read.u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Rejected::Absurd("its clusters are not between 512 bytes and 2 MiB"));
    }
    let cluster = 1_u64 << cluster_bits;
    let (features, header_len) = if version == 3 { version_3(&read, cluster)? } else { (0, V2_LEN) };
    extensions(&read, header_len, cluster)?;
    let virtual_size = read.u64(24)?;
    if virtual_size == 0 {
        return Err(Rejected::Absurd("its disk has no size"));
    }
    if virtual_size > MAX_VIRTUAL_SIZE {
        return Err(Rejected::TooLarge(virtual_size));
    }
    let entry = if features & EXTENDED_L2 == 0 { 8 } else { 16 };
    tables(&read, cluster, entry, virtual_size, file_size)?;
    Ok(virtual_size)
}

/// The fields of version 3: incompatible features and the length of the header.
fn version_3(read: &Reader<'_>, cluster: u64) -> Result<(u64, u64), Rejected> {
    let features = read.u64(72)?;
    if features & EXTERNAL_DATA != 0 {
        return Err(Rejected::Dependent("an external data file"));
    }
    if features & CORRUPT != 0 {
        return Err(Rejected::Feature("is marked as corrupt"));
    }
    if features & DIRTY != 0 {
        return Err(Rejected::Feature("was not closed cleanly"));
    }
    if features & !KNOWN != 0 {
        return Err(Rejected::Feature("uses a feature that is not known"));
    }
    if features & EXTENDED_L2 != 0 && cluster < 1 << 14 {
        return Err(Rejected::Absurd("its subclusters need clusters of at least 16 KiB"));
    }
    if read.u32(96)? > 6 {
        return Err(Rejected::Absurd("its reference counts are wider than 64 bits"));
    }
    let length = u64::from(read.u32(100)?);
    if length < V3_LEN || length > cluster || !length.is_multiple_of(8) {
        return Err(Rejected::Absurd("its header has an impossible length"));
    }
    let compression = if length > V3_LEN { read.bytes::<1>(V3_LEN)?[0] } else { 0 };
    if compression > 1 {
        return Err(Rejected::Feature("uses a compression that is not known"));
    }
    if (compression != 0) != (features & COMPRESSION_TYPE != 0) {
        return Err(Rejected::Absurd("its compression type contradicts its features"));
    }
    Ok((features, length))
}

/// Walks the header extensions: some of them name other files or keys.
fn extensions(read: &Reader<'_>, mut at: u64, cluster: u64) -> Result<(), Rejected> {
    for _ in 0..MAX_EXTENSIONS {
        if at + 8 > cluster {
            return Ok(());
        }
        let (kind, length) = (read.u32(at)?, u64::from(read.u32(at + 4)?));
        match kind {
            0 => return Ok(()),
            0x4441_5441 => return Err(Rejected::Dependent("an external data file")),
            0xe279_2aca => return Err(Rejected::Dependent("the format of a backing file is given")),
            0x0537_be77 => return Err(Rejected::Feature("is encrypted")),
            _ => {}
        }
        at += 8 + length.next_multiple_of(8);
        if at > cluster {
            return Err(Rejected::Absurd("a header extension is longer than the header's cluster"));
        }
    }
    Err(Rejected::Absurd("it has too many header extensions"))
}

/// Checks that the tables fit the disk, are not absurd, and lie inside the file.
fn tables(read: &Reader<'_>, cluster: u64, entry: u64, size: u64, file_size: u64) -> Result<(), Rejected> {
    let inside = |offset: u64, length: u64| -> Result<(), Rejected> {
        if offset < cluster || !offset.is_multiple_of(cluster) {
            return Err(Rejected::Absurd("a table does not lie on a cluster"));
        }
        match offset.checked_add(length) {
            Some(end) if end <= file_size => Ok(()),
            _ => Err(Rejected::Truncated),
        }
    };
    let l1_entries = u64::from(read.u32(36)?);
    // cluster ≤ 2^21 and entry ≥ 8, so the bytes that one entry covers are at most 2^39.
    let covered_by_one = cluster * (cluster / entry);
    if l1_entries < size.div_ceil(covered_by_one) {
        return Err(Rejected::Absurd("its level 1 table is too small for its disk"));
    }
    if l1_entries * 8 > MAX_L1_BYTES {
        return Err(Rejected::Absurd("its level 1 table is larger than QEMU takes"));
    }
    inside(read.u64(40)?, l1_entries * 8)?;
    let reftable = u64::from(read.u32(56)?) * cluster;
    if reftable == 0 || reftable > MAX_REFTABLE_BYTES {
        return Err(Rejected::Absurd("its reference count table has an impossible size"));
    }
    inside(read.u64(48)?, reftable)
}

#[cfg(test)]
mod tests {
    use super::super::{HEAD_LEN, Header, inspect as look};
    use super::*;
    use crate::api::image::DiskFormat;

    const GIB: u64 = 1 << 30;
    const FILE: u64 = 5 * 65536;

    /// A plain image of version 3 with 64 KiB clusters and a disk of 1 GiB.
    fn plain() -> Vec<u8> {
        let mut h = vec![0; HEAD_LEN];
        put(&mut h, 0, MAGIC);
        put(&mut h, 4, &3_u32.to_be_bytes());
        put(&mut h, 20, &16_u32.to_be_bytes());
        put(&mut h, 24, &GIB.to_be_bytes());
        put(&mut h, 36, &2_u32.to_be_bytes());
        put(&mut h, 40, &(3 * 65536_u64).to_be_bytes());
        put(&mut h, 48, &65536_u64.to_be_bytes());
        put(&mut h, 56, &1_u32.to_be_bytes());
        put(&mut h, 96, &4_u32.to_be_bytes());
        put(&mut h, 100, &104_u32.to_be_bytes());
        h
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn changed(at: usize, value: &[u8]) -> Result<Header, Rejected> {
        let mut bytes = plain();
        put(&mut bytes, at, value);
        look(&bytes, FILE)
    }

    #[test]
    fn plain_images_of_both_versions_are_taken() {
        let header = Header { format: DiskFormat::Qcow2, virtual_size: GIB };
        assert_eq!(look(&plain(), FILE), Ok(header));
        assert_eq!(changed(4, &2_u32.to_be_bytes()), Ok(header));
        let mut zstd = plain();
        put(&mut zstd, 72, &COMPRESSION_TYPE.to_be_bytes());
        put(&mut zstd, 100, &112_u32.to_be_bytes());
        put(&mut zstd, 104, &[1]);
        assert_eq!(look(&zstd, FILE), Ok(header));
    }

    #[test]
    fn whatever_opens_another_file_is_refused() {
        for (at, value) in [(8, &0x200_u64.to_be_bytes()[..]), (16, &5_u32.to_be_bytes())] {
            assert_eq!(changed(at, value), Err(Rejected::Dependent("a backing file")));
        }
        assert_eq!(changed(72, &EXTERNAL_DATA.to_be_bytes()), Err(Rejected::Dependent("an external data file")));
        for kind in [0x4441_5441_u32, 0xe279_2aca] {
            assert!(matches!(changed(104, &kind.to_be_bytes()), Err(Rejected::Dependent(_))), "{kind:x}");
        }
        assert!(matches!(changed(104, &0x0537_be77_u32.to_be_bytes()), Err(Rejected::Feature("is encrypted"))));
        let mut second = plain();
        put(&mut second, 104, &[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 5]);
        put(&mut second, 120, b"DATA");
        assert_eq!(look(&second, FILE), Err(Rejected::Dependent("an external data file")), "behind a harmless one");
    }

    #[test]
    fn features_that_are_not_taken_are_refused() {
        for (at, value) in [
            (72, &DIRTY.to_be_bytes()[..]),
            (72, &CORRUPT.to_be_bytes()),
            (72, &(1_u64 << 5).to_be_bytes()),
            (72, &(1_u64 << 63).to_be_bytes()),
            (32, &1_u32.to_be_bytes()),
            (32, &2_u32.to_be_bytes()),
            (60, &1_u32.to_be_bytes()),
        ] {
            assert!(matches!(changed(at, value), Err(Rejected::Feature(_))), "{at}");
        }
        assert!(matches!(changed(4, &1_u32.to_be_bytes()), Err(Rejected::OtherFormat(_))));
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for (at, value) in [
            (20, &8_u32.to_be_bytes()[..]),
            (20, &22_u32.to_be_bytes()),
            (20, &u32::MAX.to_be_bytes()),
            (24, &0_u64.to_be_bytes()),
            (36, &1_u32.to_be_bytes()),
            (36, &u32::MAX.to_be_bytes()),
            (40, &0_u64.to_be_bytes()),
            (40, &(3 * 65536_u64 + 8).to_be_bytes()),
            (48, &0_u64.to_be_bytes()),
            (56, &0_u32.to_be_bytes()),
            (56, &u32::MAX.to_be_bytes()),
            (96, &7_u32.to_be_bytes()),
            (100, &72_u32.to_be_bytes()),
            (100, &105_u32.to_be_bytes()),
            (100, &u32::MAX.to_be_bytes()),
            (72, &COMPRESSION_TYPE.to_be_bytes()),
            (104, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
        ] {
            assert!(matches!(changed(at, value), Err(Rejected::Absurd(_))), "{at} {value:?}");
        }
        let hundred_tb = 100_000_000_000_000_u64;
        assert_eq!(changed(24, &hundred_tb.to_be_bytes()), Err(Rejected::TooLarge(hundred_tb)));
        assert_eq!(changed(24, &u64::MAX.to_be_bytes()), Err(Rejected::TooLarge(u64::MAX)));
    }

    #[test]
    fn a_file_that_ends_before_its_tables_is_refused() {
        assert_eq!(changed(40, &(1_u64 << 40).to_be_bytes()), Err(Rejected::Truncated));
        assert_eq!(changed(40, &(!0xffff_u64).to_be_bytes()), Err(Rejected::Truncated));
        let whole = plain();
        for length in [4, 8, 24, 71, 103, 107] {
            assert_eq!(look(&whole[..length], length as u64), Err(Rejected::Truncated), "{length}");
        }
    }

    #[test]
    fn two_formats_at_once_are_refused() {
        for (at, magic) in [(0x8001, &b"CD001"[..]), (0x40, b"\x7f\x10\xda\xbe"), (510, b"\x55\xaa"), (257, b"ustar")] {
            assert!(matches!(changed(at, magic), Err(Rejected::Polyglot(_))), "{at}");
        }
    }
}
