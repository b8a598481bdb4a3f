//! What an ext4 superblock says (Documentation/filesystems/ext4/super.rst): label, size, and whether it was unmounted in order.

/// Where it begins on the volume, in bytes.
pub(crate) const OFFSET: u64 = 1024;
/// How long it is.
pub(crate) const LENGTH: usize = 1024;

/// What matters of it here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) label: String,
    pub(crate) block_size: u64,
    pub(crate) blocks: u64,
    /// Unmounted in order, without errors or orphans, and not due for a check by mounts or time: what e2fsck -p passes over as well.
    pub(crate) clean: bool,
}

impl Superblock {
    /// The file system's size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.block_size.saturating_mul(self.blocks)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// VALID_FS alone: neither errors nor orphans.
const STATE_VALID: u16 = 1;
/// The incompatible feature that says that the journal must be replayed.
const RECOVER: u32 = 0x4;

fn clean(bytes: &[u8]) -> Option<bool> {
    let (mounts, most) = (u16_at(bytes, 0x34)?, u16_at(bytes, 0x36)?.cast_signed());
    let by_time = u32_at(bytes, 0x44)?;
    Some(
        u16_at(bytes, 0x3a)? == STATE_VALID
            && u32_at(bytes, 0x60)? & RECOVER == 0
            && u32_at(bytes, 0xe8)? == 0
            && u32_at(bytes, 0x194)? == 0
            && (most <= 0 || mounts < most.cast_unsigned())
            && by_time == 0,
    )
}

/// Reads one; `None` when it is none.
pub(crate) fn parse(bytes: &[u8]) -> Option<Superblock> {
    if u16_at(bytes, 0x38)? != 0xef53 {
        return None;
    }
    let shift = u32_at(bytes, 0x18).filter(|shift| *shift <= 6)?;
    let has_64bit = u32_at(bytes, 0x60)? & 0x80 != 0;
    let high = if has_64bit { u64::from(u32_at(bytes, 0x150)?) << 32 } else { 0 };
    let label = bytes.get(0x78..0x88)?.split(|b| *b == 0).next().unwrap_or_default();
    Some(Superblock {
        label: String::from_utf8_lossy(label).into_owned(),
        block_size: 1024 << shift,
        blocks: high | u64::from(u32_at(bytes, 0x4)?),
        clean: clean(bytes)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A volume made by mkfs.ext4, where the machine has it.
    #[test]
    fn what_mkfs_made_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(64 << 20).unwrap();
        let mkfs = std::process::Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-L", "KEELSON-STATE"])
            .arg(file.path())
            .status();
        let Ok(status) = mkfs else {
            eprintln!("SKIPPED: there is no mkfs.ext4 here");
            return;
        };
        assert!(status.success());
        let bytes = std::fs::read(file.path()).unwrap();
        let found = parse(&bytes[1024..2048]).unwrap();
        assert_eq!(
            (found.label.as_str(), found.block_size, found.bytes()),
            ("KEELSON-STATE", 4096, 64 << 20)
        );
        assert!(found.clean);
        for (at, byte) in
            [(0x3a, 0), (0x3a, 3), (0x60, bytes[1024 + 0x60] | 4), (0xe8, 12), (0x194, 1), (0x44, 1)]
        {
            let mut used = bytes[1024..2048].to_vec();
            used[at] = byte;
            assert!(!parse(&used).unwrap().clean, "{at:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            parse(&bytes);
            if let Some(magic) = bytes.get_mut(0x38..0x3a) {
                magic.copy_from_slice(&0xef53u16.to_le_bytes());
            }
            if let Some(found) = parse(&bytes) {
                prop_assert!(found.block_size <= 65_536);
                found.bytes();
            }
        }
    }
}
