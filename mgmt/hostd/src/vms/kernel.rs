//! Whether a file is a kernel that a VM can boot: a bzImage, or an x86-64 ELF with a PVH note. Only the outside is looked at; the
//! monitor checks the rest when it loads it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What a kernel file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// A bzImage (Linux x86 boot protocol).
    BzImage,
    /// An ELF that names its PVH entry.
    PvhElf,
}

/// Why a file is no kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// It is something else.
    #[error("it is neither a bzImage nor an x86-64 ELF")]
    NotAKernel,
    /// It is a zImage or a boot sector of an old protocol.
    #[error("it is an x86 kernel of boot protocol {}.{:02}; 2.06 or later is needed", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// It is an ELF without the note.
    #[error("it is an x86-64 ELF without a PVH note (a Linux vmlinux has one when CONFIG_PVH is set)")]
    NoPvhNote,
    /// It ends too early.
    #[error("it is cut off: it ends before what its header announces")]
    Cut,
}

/// More program headers or a longer note segment than any kernel has.
const MAX_HEADERS: u64 = 64;
const MAX_NOTES: u64 = 1 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PVH_NOTE: u32 = 18;

/// Looks at a file. The outer error is one of reading it.
pub(super) fn identify(file: &File) -> io::Result<Result<KernelKind, KernelError>> {
    let size = file.metadata()?.len();
    identify_in(size, &|offset, length| {
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    })
}

/// Reads `length` bytes at an offset; `None` when the file ends before.
type ReadAt<'a> = &'a dyn Fn(u64, usize) -> io::Result<Option<Vec<u8>>>;

fn identify_in(size: u64, read: ReadAt<'_>) -> io::Result<Result<KernelKind, KernelError>> {
    let magic = read(0, 4)?;
    if magic.as_deref() == Some(b"\x7fELF") {
        return pvh(size, read);
    }
    let Some(header) = read(0x1f1, 0x250 - 0x1f1)? else { return Ok(Err(KernelError::NotAKernel)) };
    let at = |offset: usize| header.get(offset - 0x1f1..).unwrap_or_default();
    if !at(0x1fe).starts_with(&[0x55, 0xaa]) || !at(0x202).starts_with(b"HdrS") {
        return Ok(Err(KernelError::NotAKernel));
    }
    let protocol = u16_at(&header, 0x206 - 0x1f1);
    if protocol < 0x206 {
        return Ok(Err(KernelError::OldProtocol(protocol)));
    }
    let sectors = match at(0x1f1).first() {
        None | Some(0) => 4,
        Some(n) => u64::from(*n),
    };
    let protected_mode = u64::from(u32_at(&header, 0x1f4 - 0x1f1)) * 16;
    if size < (sectors + 1) * 512 || size < (sectors + 1) * 512 + protected_mode.saturating_sub(16) {
        return Ok(Err(KernelError::Cut));
    }
    Ok(Ok(KernelKind::BzImage))
}

fn pvh(size: u64, read: ReadAt<'_>) -> io::Result<Result<KernelKind, KernelError>> {
    let Some(header) = read(0, 64)? else { return Ok(Err(KernelError::Cut)) };
    // 64-bit, little-endian, x86-64.
    if header.get(4) != Some(&2) || header.get(5) != Some(&1) || u16_at(&header, 18) != 62 {
        return Ok(Err(KernelError::NotAKernel));
    }
    let (table, entry, count) =
        (u64_at(&header, 32), u64::from(u16_at(&header, 54)), u64::from(u16_at(&header, 56)));
    if entry < 56 || count > MAX_HEADERS {
        return Ok(Err(KernelError::NotAKernel));
    }
    for n in 0..count {
        let Some(offset) = table.checked_add(n * entry).filter(|o| *o <= size) else {
            return Ok(Err(KernelError::Cut));
        };
        let Some(segment) = read(offset, 56)? else { return Ok(Err(KernelError::Cut)) };
        if u32_at(&segment, 0) != 4 {
            continue;
        }
        let (offset, length) = (u64_at(&segment, 8), u64_at(&segment, 32));
        if length > MAX_NOTES || offset > size {
            return Ok(Err(KernelError::Cut));
        }
        let Some(notes) = read(offset, usize::try_from(length).unwrap_or(0))? else {
            return Ok(Err(KernelError::Cut));
        };
        if has_pvh_note(&notes) {
            return Ok(Ok(KernelKind::PvhElf));
        }
    }
    Ok(Err(KernelError::NoPvhNote))
}

fn has_pvh_note(mut notes: &[u8]) -> bool {
    while notes.len() >= 12 {
        let (name, content, kind) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let (padded_name, padded_content) = (name.next_multiple_of(4), content.next_multiple_of(4));
        let Some(rest) = notes.get(12..) else { return false };
        if kind == PVH_NOTE
            && rest.get(..name) == Some(b"Xen\0")
            && content >= 4
            && rest.len() >= padded_name + content
        {
            return true;
        }
        let Some(next) = padded_name.checked_add(padded_content).and_then(|n| rest.get(n..)) else {
            return false;
        };
        notes = next;
    }
    false
}

fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(bytes: &[u8]) -> Result<KernelKind, KernelError> {
        let read = |offset: u64, length: usize| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            Ok(start.checked_add(length).and_then(|end| bytes.get(start..end)).map(<[u8]>::to_vec))
        };
        identify_in(bytes.len() as u64, &read).unwrap()
    }

    /// The least that passes for a bzImage: a boot sector, four set-up sectors, 16 bytes of kernel.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0u8; 5 * 512 + 16];
        image[0x1f1] = 4;
        image[0x1f4] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image
    }

    fn elf(note_kind: u32) -> Vec<u8> {
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        let mut segment = vec![0u8; 56];
        segment[0] = 4;
        segment[8] = 120;
        segment[32] = 24;
        file.extend(segment);
        for word in [4u32, 8, note_kind] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"Xen\0");
        file.extend([0; 8]);
        file
    }

    #[test]
    fn kernels_are_told_from_other_files() {
        assert_eq!(look(&bzimage()), Ok(KernelKind::BzImage));
        assert_eq!(look(&elf(18)), Ok(KernelKind::PvhElf));
        assert_eq!(look(&elf(17)), Err(KernelError::NoPvhNote));
        assert_eq!(look(b""), Err(KernelError::NotAKernel));
        assert_eq!(look(b"#!/bin/sh\necho no kernel\n"), Err(KernelError::NotAKernel));
        let mut old = bzimage();
        old[0x206] = 5;
        assert_eq!(look(&old).unwrap_err(), KernelError::OldProtocol(0x205));
        let whole = bzimage();
        assert_eq!(look(&whole[..1024]), Err(KernelError::Cut));
        assert_eq!(look(&elf(18)[..70]), Err(KernelError::Cut));
    }

    proptest::proptest! {
        #[test]
        fn damaged_kernels_never_panic(at in 0usize..200, value: u8, length in 0usize..144, big: bool) {
            let mut bytes = if big { bzimage() } else { elf(18) };
            let at = if big { 0x1f1 + at % 0x60 } else { at % bytes.len() };
            bytes[at] = value;
            if !big {
                bytes.truncate(length);
            }
            drop(look(&bytes));
        }

        #[test]
        fn any_notes_end(notes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            has_pvh_note(&notes);
        }
    }
}
