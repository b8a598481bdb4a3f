//! Reading a GUID partition table (UEFI 2.10, 5.3). The kernel has made devices of it already; here it is read for what the kernel
//! does not tell: types, names and GUIDs.

/// The type of an EFI system partition, as the bytes lie on disk.
const ESP: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// The most entries that are read, and their largest size: 128 of 128 bytes are usual.
const ENTRIES_MAX: u32 = 1024;
const ENTRY_MAX: u32 = 4096;

/// Where the entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// In logical blocks from the start of the disk.
    pub(crate) entries_at: u64,
    pub(crate) entries: u32,
    pub(crate) entry_size: u32,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its number, from 1.
    pub(crate) number: u32,
    pub(crate) is_esp: bool,
    /// In the usual spelling, lower case.
    pub(crate) guid: String,
    pub(crate) name: String,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Reads the header, which is the disk's second logical block.
pub(crate) fn header(block: &[u8]) -> Option<Header> {
    block.strip_prefix(b"EFI PART")?;
    let header = Header {
        entries_at: u64_at(block, 72)?,
        entries: u32_at(block, 80)?,
        entry_size: u32_at(block, 84)?,
    };
    let sane = header.entries <= ENTRIES_MAX && (128..=ENTRY_MAX).contains(&header.entry_size);
    sane.then_some(header)
}

/// Reads the entries.
pub(crate) fn entries(header: Header, bytes: &[u8]) -> Vec<Entry> {
    let size = usize::try_from(header.entry_size).unwrap_or(usize::MAX).max(128);
    (1..=header.entries)
        .zip(bytes.chunks_exact(size))
        .filter_map(|(number, bytes)| entry(number, bytes))
        .collect()
}

fn entry(number: u32, bytes: &[u8]) -> Option<Entry> {
    let kind: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    if kind == [0; 16] {
        return None;
    }
    let guid: [u8; 16] = bytes.get(16..32)?.try_into().ok()?;
    let units = bytes
        .get(56..128)?
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    Some(Entry { number, is_esp: kind == ESP, guid: spell(guid), name: String::from_utf16_lossy(&units) })
}

/// The first three fields are little-endian.
fn spell(guid: [u8; 16]) -> String {
    let order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (at, from) in order.into_iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        if let Some(byte) = guid.get(from) {
            text.push_str(&format!("{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::gpt::partition::Partition;
    use ::gpt::{GptConfig, partition_types};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_the_gpt_crate_wrote_is_read() {
        let mut disk = std::io::Cursor::new(vec![0u8; 4 << 20]);
        ::gpt::mbr::ProtectiveMBR::with_lb_size(8191).overwrite_lba0(&mut disk).unwrap();
        let guid = uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        let mut table = GptConfig::new().writable(true).create_from_device(disk, None).unwrap();
        let partition = |kind, guid, first, last, name: &str| Partition {
            part_type_guid: kind,
            part_guid: guid,
            first_lba: first,
            last_lba: last,
            flags: 0,
            name: name.into(),
        };
        let parts = BTreeMap::from([
            (1, partition(partition_types::EFI, guid, 2048, 4095, "KEELSON-ESP")),
            (2, partition(partition_types::LINUX_FS, uuid::Uuid::from_u128(5), 4096, 6143, "KEELSON-STATE")),
        ]);
        table.update_partitions(parts).unwrap();
        let bytes = table.write().unwrap().into_inner();
        let header = header(&bytes[512..1024]).unwrap();
        let at = usize::try_from(header.entries_at).unwrap() * 512;
        let found = entries(header, &bytes[at..at + 128 * 128]);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[0].is_esp, found[0].guid.clone(), found[0].name.as_str()),
            (true, guid.to_string(), "KEELSON-ESP")
        );
        assert_eq!((found[1].number, found[1].is_esp, found[1].name.as_str()), (2, false, "KEELSON-STATE"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), entry_size in 0u32..5000) {
            if bytes.len() >= 8 {
                bytes[..8].copy_from_slice(b"EFI PART");
            }
            let _ = header(&bytes);
            entries(Header { entries_at: 2, entries: 128, entry_size }, &bytes);
        }
    }
}
