//! Joins systemd's EFI stub, kernel, initramfs and command line into one file that UEFI firmware starts: a unified kernel image.
//!
//! The stub finds its payload in PE sections by name, so joining is appending sections to the stub. There is no `.osrel` on
//! purpose: with it the stub appends a cpio of its own behind the initramfs, which nothing here reads.

/// Sections are read by the firmware as data.
const READABLE_DATA: u32 = 0x4000_0040;
/// Bytes of one entry of the section table.
const ENTRY: usize = 40;
/// Where the fields of a PE32+ optional header are, from its start.
mod field {
    pub(super) const MAGIC: usize = 0;
    pub(super) const INITIALISED: usize = 8;
    pub(super) const SECTION_ALIGNMENT: usize = 32;
    pub(super) const FILE_ALIGNMENT: usize = 36;
    pub(super) const IMAGE_SIZE: usize = 56;
    pub(super) const HEADERS_SIZE: usize = 60;
    pub(super) const CHECKSUM: usize = 64;
    pub(super) const SIGNATURE: usize = 112 + 4 * 8;
}

/// Why the stub cannot be extended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UkiError {
    /// The stub is no EFI program for x86-64.
    #[error("the EFI stub is no PE32+ file: {0}")]
    NotPe(&'static str),
    /// The stub is signed, and a signature covers what would change.
    #[error("the EFI stub is signed; joining would break the signature")]
    Signed,
    /// The header has no room for another section.
    #[error("the EFI stub's header has room for {room} more sections, {needed} are needed")]
    NoRoom {
        /// Entries that fit.
        room: usize,
        /// Entries that are needed.
        needed: usize,
    },
    /// The name does not fit a section header.
    #[error("section name {0} is longer than 8 bytes")]
    Name(String),
    /// The result would be beyond what PE can say.
    #[error("the joined file would be larger than 4 GiB")]
    TooLarge,
}

/// Appends `sections` (name, contents) to `stub`, in order. The kernel should come last: some stubs let it use what follows.
pub fn join(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>, UkiError> {
    let pe = read_u32(stub, 0x3c)? as usize;
    if stub.get(pe..pe.saturating_add(4)) != Some(b"PE\0\0") {
        return Err(UkiError::NotPe("no PE signature"));
    }
    let count = usize::from(read_u16(stub, pe + 6)?);
    let optional = pe + 24;
    if read_u16(stub, optional + field::MAGIC)? != 0x20b {
        return Err(UkiError::NotPe("not for 64-bit processors"));
    }
    let table = optional + usize::from(read_u16(stub, pe + 20)?);
    let section_alignment = alignment(read_u32(stub, optional + field::SECTION_ALIGNMENT)?)?;
    let file_alignment = alignment(read_u32(stub, optional + field::FILE_ALIGNMENT)?)?;
    if read_u32(stub, optional + field::SIGNATURE)? != 0 {
        return Err(UkiError::Signed);
    }

    let mut memory_end = 0_u64;
    let mut first_data = read_u32(stub, optional + field::HEADERS_SIZE)? as usize;
    for entry in (0..count).map(|n| table + n * ENTRY) {
        let (size, address) = (read_u32(stub, entry + 8)?, read_u32(stub, entry + 12)?);
        memory_end = memory_end.max(u64::from(address) + u64::from(size));
        match read_u32(stub, entry + 20)? as usize {
            0 => {} // No contents in the file.
            data => first_data = first_data.min(data),
        }
    }
    let table_end = table + count * ENTRY;
    let room = first_data.saturating_sub(table_end) / ENTRY;
    if room < sections.len() {
        return Err(UkiError::NoRoom { room, needed: sections.len() });
    }

    let mut out = stub.to_vec();
    let mut initialised = u64::from(read_u32(stub, optional + field::INITIALISED)?);
    for (n, (name, bytes)) in sections.iter().enumerate() {
        let address = memory_end.next_multiple_of(section_alignment);
        let data = (out.len() as u64).next_multiple_of(file_alignment);
        let raw = (bytes.len() as u64).next_multiple_of(file_alignment);
        memory_end = address + bytes.len() as u64;
        initialised += raw;
        let mut entry = [0; ENTRY];
        put(&mut entry, 0, name.as_bytes())
            .filter(|()| name.len() <= 8)
            .ok_or_else(|| UkiError::Name((*name).to_owned()))?;
        for (at, value) in
            [(8, bytes.len() as u64), (12, address), (16, raw), (20, data), (36, READABLE_DATA.into())]
        {
            put_u32(&mut entry, at, value)?;
        }
        put(&mut out, table_end + n * ENTRY, &entry).ok_or(UkiError::NotPe("section table"))?;
        out.resize(data as usize, 0);
        out.extend_from_slice(bytes);
        out.resize((data + raw) as usize, 0);
    }
    put(&mut out, pe + 6, &((count + sections.len()) as u16).to_le_bytes())
        .ok_or(UkiError::NotPe("header"))?;
    put_u32(&mut out, optional + field::IMAGE_SIZE, memory_end.next_multiple_of(section_alignment))?;
    put_u32(&mut out, optional + field::INITIALISED, initialised)?;
    // Firmware checks it for drivers only; zero means that there is none.
    put_u32(&mut out, optional + field::CHECKSUM, 0)?;
    Ok(out)
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, UkiError> {
    let field = bytes.get(at..at.saturating_add(2)).and_then(|b| b.try_into().ok());
    field.map(u16::from_le_bytes).ok_or(UkiError::NotPe("it ends inside a header"))
}

fn read_u32(bytes: &[u8], at: usize) -> Result<u32, UkiError> {
    let field = bytes.get(at..at.saturating_add(4)).and_then(|b| b.try_into().ok());
    field.map(u32::from_le_bytes).ok_or(UkiError::NotPe("it ends inside a header"))
}

fn alignment(value: u32) -> Result<u64, UkiError> {
    if value.is_power_of_two() { Ok(value.into()) } else { Err(UkiError::NotPe("odd alignment")) }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(value.len())?)?.copy_from_slice(value);
    Some(())
}

fn put_u32(bytes: &mut [u8], at: usize, value: u64) -> Result<(), UkiError> {
    let value = u32::try_from(value).map_err(|_| UkiError::TooLarge)?;
    put(bytes, at, &value.to_le_bytes()).ok_or(UkiError::NotPe("it ends inside a header"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use object::{Object, ObjectSection};

    /// A PE32+ file with one section and room for `room` more.
    pub(crate) fn stub(room: usize) -> Vec<u8> {
        let mut pe = vec![0; 0x40];
        pe[0..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x40;
        pe.extend_from_slice(b"PE\0\0");
        pe.extend_from_slice(&0x8664_u16.to_le_bytes());
        pe.extend_from_slice(&1_u16.to_le_bytes());
        pe.extend_from_slice(&[0; 12]);
        pe.extend_from_slice(&240_u16.to_le_bytes());
        pe.extend_from_slice(&0x22_u16.to_le_bytes());
        let optional = pe.len();
        pe.resize(optional + 240, 0);
        let headers = (pe.len() + ENTRY * (1 + room)).next_multiple_of(8);
        let data = headers.next_multiple_of(512);
        pe[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
        for (at, value) in [(32, 4096_u32), (36, 512), (56, 8192), (60, headers as u32), (108, 16)] {
            pe[optional + at..optional + at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let mut entry = [0; ENTRY];
        entry[..5].copy_from_slice(b".text");
        for (at, value) in [(8, 512_u32), (12, 4096), (16, 512), (20, data as u32), (36, 0x6000_0020)] {
            entry[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        pe.extend_from_slice(&entry);
        pe.resize(data, 0);
        pe.resize(data + 512, 0xcc);
        pe
    }

    #[test]
    fn an_independent_reader_finds_the_sections() {
        let initrd = vec![7; 100_000];
        let uki = join(&stub(3), &[(".cmdline", b"quiet"), (".initrd", &initrd), (".linux", b"MZkernel")])
            .expect("join");
        let file = object::read::pe::PeFile64::parse(&*uki).expect("PE");
        let find = |name: &str| file.section_by_name(name).and_then(|s| s.data().ok().map(<[u8]>::to_vec));
        assert_eq!(find(".text").expect("text"), vec![0xcc; 512]);
        assert_eq!(find(".cmdline").expect("cmdline"), b"quiet");
        assert_eq!(find(".initrd").expect("initrd"), initrd);
        assert_eq!(find(".linux").expect("linux"), b"MZkernel");
        let addresses: Vec<u64> = file.sections().map(|section| section.address()).collect();
        assert!(addresses.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(addresses.iter().all(|address| address % 4096 == 0));
    }

    #[test]
    fn a_full_header_is_refused() {
        let sections: Vec<(&str, &[u8])> = vec![(".x", b""); 30];
        assert!(matches!(join(&stub(2), &sections), Err(UkiError::NoRoom { needed: 30, .. })));
    }

    #[test]
    fn a_signed_stub_is_refused() {
        let mut signed = stub(2);
        signed[0x40 + 24 + field::SIGNATURE] = 1;
        assert_eq!(join(&signed, &[(".linux", b"")]), Err(UkiError::Signed));
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_are_no_stub(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..600)) {
            let _ = join(&bytes, &[(".linux", b"kernel")]);
        }
        #[test]
        fn a_damaged_stub_is_survived(at in 0_usize..400, value: u8) {
            let mut damaged = stub(4);
            damaged[at] = value;
            let _ = join(&damaged, &[(".linux", b"kernel")]);
        }
    }
}
