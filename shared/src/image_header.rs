//! What a disk image says of itself, read without trusting it.
//!
//! [`inspect`] decides the format once, from the first bytes; from then on it is given explicitly to
//! every program, so that nothing guesses. What could make QEMU open another file of the host, or
//! take absurd amounts of memory, is refused before any QEMU program sees the image:
//!
//! - qcow2, version 2 and 3: no backing file, no external data file, no encryption, no internal
//!   snapshots, no unknown incompatible feature, not dirty or corrupt; tables of a size that fits the
//!   disk and that lie inside the file.
//! - anything else that has no signature known here is raw. An ISO 9660 image alone counts as raw:
//!   its bytes are a disk (installers boot from it when it is a hybrid), and reading it so opens nothing.
//! - a file that is two formats at once (a qcow2 that is also an ISO, a VDI, a partitioned disk) is
//!   refused: programs would not agree on what it is.
//!
//! Layout of qcow2: QEMU's `docs/interop/qcow2.rst`. Nothing here panics, whatever the bytes.

mod qcow2;

use crate::api::image::DiskFormat;
use crate::error::{Code, Error};

/// How many of the first bytes [`inspect`] wants to see: all that it looks at lies in them.
pub const HEAD_LEN: usize = 64 * 1024;
/// The largest disk that is believed, 64 TiB. Callers usually allow less.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;
/// Disks are counted in sectors.
const SECTOR: u64 = 512;

/// What an acceptable image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its format.
    pub format: DiskFormat,
    /// Size of the disk that a guest sees, in bytes.
    pub virtual_size: u64,
}

/// Why an image is not acceptable, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The file has no content, or ends inside its own header or tables.
    #[error("the image is empty or cut off; download or make it again")]
    Truncated,
    /// It is of another disk format.
    #[error("the image is {0}; convert it first: qemu-img convert -O qcow2 IMAGE NEW.qcow2")]
    OtherFormat(&'static str),
    /// It is packed.
    #[error("the image is {0}; unpack it first and give the disk image that is inside")]
    Packed(&'static str),
    /// It is no image at all.
    #[error("this is {0} and not a disk image; check the address it came from")]
    NotAnImage(&'static str),
    /// It is two formats at once.
    #[error("the image is qcow2 and {0} at the same time; make a clean one: qemu-img convert -f qcow2 -O qcow2")]
    Polyglot(&'static str),
    /// It needs another file.
    #[error("the image depends on another file ({0}); make it independent: qemu-img convert -O qcow2 IMAGE NEW.qcow2")]
    Dependent(&'static str),
    /// It uses a feature that is not taken.
    #[error("the image {0}; make a plain copy: qemu-img convert -O qcow2 IMAGE NEW.qcow2")]
    Feature(&'static str),
    /// A number in its header makes no sense.
    #[error("the image's header is not acceptable: {0}")]
    Absurd(&'static str),
    /// Its disk is larger than any that is believed.
    #[error("the image claims a disk of {0} bytes, which is more than any host can give")]
    TooLarge(u64),
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        Self::new(Code::ImageRejected, rejected.to_string())
    }
}

/// Reads the header of an image. `head` are the first bytes of the file: [`HEAD_LEN`] of them, or
/// all when there are fewer; `file_size` is how many there are in all.
///
/// # Errors
/// See [`Rejected`].
pub fn inspect(head: &[u8], file_size: u64) -> Result<Header, Rejected> {
    let wanted = usize::try_from(file_size).map_or(HEAD_LEN, |size| size.min(HEAD_LEN));
    let head = head.get(..wanted).ok_or(Rejected::Truncated)?;
    if file_size == 0 {
        return Err(Rejected::Truncated);
    }
    if head.starts_with(qcow2::MAGIC) {
        refuse_polyglot(head)?;
        let virtual_size = qcow2::inspect(head, file_size)?;
        return Ok(Header { format: DiskFormat::Qcow2, virtual_size });
    }
    refuse_foreign(head)?;
    if !file_size.is_multiple_of(SECTOR) {
        return Err(Rejected::Absurd("a raw image must be a multiple of 512 bytes; it may be cut off or packed"));
    }
    if file_size > MAX_VIRTUAL_SIZE {
        return Err(Rejected::TooLarge(file_size));
    }
    Ok(Header { format: DiskFormat::Raw, virtual_size: file_size })
}

/// Signatures that other formats have somewhere else than at the beginning.
const INSIDE: &[(usize, &[u8], &str)] = &[
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (257, b"ustar", "a tar archive"),
    (510, b"\x55\xaa", "a partitioned disk"),
    (512, b"EFI PART", "a partitioned disk"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (0x8001, b"NSR0", "a UDF image"),
];

fn refuse_polyglot(head: &[u8]) -> Result<(), Rejected> {
    match INSIDE.iter().find(|(at, magic, _)| has(head, *at, magic)) {
        Some((_, _, what)) => Err(Rejected::Polyglot(what)),
        None => Ok(()),
    }
}

fn refuse_foreign(head: &[u8]) -> Result<(), Rejected> {
    const FORMATS: &[(&[u8], &str)] = &[
        (b"KDMV", "VMDK"),
        (b"COWD", "VMDK"),
        (b"# Disk DescriptorFile", "a VMDK descriptor"),
        (b"conectix", "VHD"),
        (b"vhdxfile", "VHDX"),
        (b"QED\0", "QED"),
        (b"LUKS\xba\xbe", "encrypted with LUKS"),
        (b"WithoutFreeSpace", "a Parallels disk"),
        (b"WithouFreSpacExt", "a Parallels disk"),
        (b"Bochs Virtual HD Image", "a Bochs disk"),
        (b"OOOM", "a COW disk of User-mode Linux"),
    ];
    const PACKED: &[(&[u8], &str)] = &[
        (b"\x1f\x8b", "packed with gzip"),
        (b"\xfd7zXZ\0", "packed with xz"),
        (b"BZh", "packed with bzip2"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd"),
        (b"\x04\x22\x4d\x18", "packed with lz4"),
        (b"PK\x03\x04", "a zip archive"),
        (b"PK\x05\x06", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07", "a RAR archive"),
    ];
    let starts = |list: &[(&[u8], &'static str)]| list.iter().find(|(m, _)| head.starts_with(m)).map(|(_, what)| *what);
    if let Some(what) = starts(FORMATS) {
        return Err(Rejected::OtherFormat(what));
    }
    if let Some(what) = starts(PACKED) {
        return Err(Rejected::Packed(what));
    }
    if has(head, 0x40, b"\x7f\x10\xda\xbe") {
        return Err(Rejected::OtherFormat("VDI"));
    }
    if has(head, 257, b"ustar") {
        return Err(Rejected::Packed("a tar archive"));
    }
    let text: Vec<u8> =
        head.iter().take(64).skip_while(|b| b.is_ascii_whitespace()).map(u8::to_ascii_lowercase).collect();
    if [&b"<!doctype"[..], b"<html", b"<?xml"].iter().any(|m| text.starts_with(m)) {
        return Err(Rejected::NotAnImage("a web page"));
    }
    Ok(())
}

fn has(head: &[u8], at: usize, magic: &[u8]) -> bool {
    head.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(size: usize) -> Vec<u8> {
        vec![0; size]
    }

    fn with(mut bytes: Vec<u8>, at: usize, magic: &[u8]) -> Vec<u8> {
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    fn look(bytes: &[u8]) -> Result<Header, Rejected> {
        inspect(&bytes[..bytes.len().min(HEAD_LEN)], bytes.len() as u64)
    }

    #[test]
    fn a_raw_disk_and_an_iso_are_raw() {
        let disk = with(raw(65536), 510, b"\x55\xaa");
        assert_eq!(look(&disk), Ok(Header { format: DiskFormat::Raw, virtual_size: 65536 }));
        let iso = with(raw(65536), 0x8001, b"CD001");
        assert_eq!(look(&iso).map(|h| h.format), Ok(DiskFormat::Raw));
    }

    #[test]
    fn other_formats_and_archives_are_refused_with_what_to_do() {
        for magic in [&b"KDMV"[..], b"# Disk DescriptorFile", b"conectix", b"vhdxfile", b"QED\0", b"LUKS\xba\xbe"] {
            let error = look(&with(raw(4096), 0, magic)).unwrap_err();
            assert!(matches!(error, Rejected::OtherFormat(_)) && error.to_string().contains("qemu-img convert"));
        }
        for magic in [&b"\x1f\x8b\x08"[..], b"\xfd7zXZ\0", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh9"] {
            let error = look(&with(raw(4096), 0, magic)).unwrap_err();
            assert!(matches!(error, Rejected::Packed(_)) && error.to_string().contains("unpack"));
        }
        assert_eq!(look(&with(raw(4096), 0x40, b"\x7f\x10\xda\xbe")), Err(Rejected::OtherFormat("VDI")));
        assert_eq!(look(&with(raw(4096), 257, b"ustar")), Err(Rejected::Packed("a tar archive")));
        assert!(matches!(look(&with(raw(4096), 0, b"\n<!DOCTYPE html>")), Err(Rejected::NotAnImage(_))));
    }

    #[test]
    fn an_empty_a_short_and_an_odd_file_are_refused() {
        assert_eq!(look(&[]), Err(Rejected::Truncated));
        assert_eq!(inspect(&raw(512), 1024), Err(Rejected::Truncated), "fewer bytes than the file has");
        assert!(matches!(look(&raw(1000)), Err(Rejected::Absurd(_))));
        let huge = inspect(&raw(HEAD_LEN), MAX_VIRTUAL_SIZE + SECTOR);
        assert_eq!(huge, Err(Rejected::TooLarge(MAX_VIRTUAL_SIZE + SECTOR)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048), size in any::<u64>()) {
            let _ = inspect(&bytes, size);
            let _ = look(&bytes);
        }

        #[test]
        fn arbitrary_bytes_behind_the_qcow2_magic_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..2048), version in 0_u8..5, size in any::<u64>(),
        ) {
            let mut image = vec![b'Q', b'F', b'I', 0xfb, 0, 0, 0, version];
            image.extend(bytes);
            let _ = inspect(&image, size);
            let _ = look(&image);
        }
    }
}
