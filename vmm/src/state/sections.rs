//! Sections `{kind, instance, version, length, crc}` and their encoding. Every number is bounded before it is believed.
//!
//! A section is a header of 32 bytes, little-endian (kind: 16 bytes of ASCII, padded with zeroes; instance: u32; version: u16; zero: u16;
//! length of the body: u32; CRC-32C of the 28 bytes before it and of the body: u32), then the body. The last section has the kind `end`,
//! no body, and as its instance the number of sections before it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use keelson_vmm_control::StateSet;

use super::StateError;
use crate::devices::saved::{BadState, Piece, SavePiece, Saved, Versioned};

/// The longest body, in bytes.
pub const MAX_BODY: u32 = 256 << 10;
/// The most sections: one for each vCPU that there may be, and some for devices.
pub const MAX_SECTIONS: u32 = 512;
/// Bytes of a header.
const HEADER: usize = 32;
const KIND: usize = 16;
/// The kind of the last section.
const END: &str = "end";

/// A section's body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    version: u16,
    body: Vec<u8>,
}

/// The sections of one machine. Kind and instance name a section; their order says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections(BTreeMap<(String, u32), Content>);

impl Sections {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names of all, in the order in which they are written.
    pub fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.keys().map(|(kind, instance)| (kind.as_str(), *instance))
    }

    /// Adds what `from` saves.
    pub fn save(
        &mut self,
        from: &(impl SavePiece + ?Sized),
        instance: u32,
        set: StateSet,
    ) -> Result<(), StateError> {
        let piece = from.piece(set).map_err(|e| StateError::bad(from.kind(), instance, e))?;
        self.put(piece, instance)
    }

    /// Adds a section.
    pub fn put(&mut self, piece: Piece, instance: u32) -> Result<(), StateError> {
        self.insert(piece.kind.to_owned(), instance, Content { version: piece.version, body: piece.body })
    }

    fn insert(&mut self, kind: String, instance: u32, content: Content) -> Result<(), StateError> {
        let length = content.body.len() as u64;
        if length > MAX_BODY.into() {
            return Err(StateError::TooMuch {
                what: "the length of a section",
                found: length,
                most: MAX_BODY.into(),
            });
        }
        if self.0.len() as u64 >= MAX_SECTIONS.into() {
            let most = u64::from(MAX_SECTIONS);
            return Err(StateError::TooMuch { what: "the number of sections", found: most + 1, most });
        }
        if !is_kind(&kind) {
            return Err(StateError::BadKind);
        }
        let name = (kind, instance);
        if self.0.contains_key(&name) {
            return Err(StateError::Twice { kind: name.0, instance });
        }
        self.0.insert(name, content);
        Ok(())
    }

    /// Takes the state of a section out.
    pub fn take<S: Versioned>(&mut self, kind: &str, instance: u32) -> Result<S, StateError> {
        let Some(content) = self.0.remove(&(kind.to_owned(), instance)) else {
            return Err(StateError::Missing { kind: kind.into(), instance });
        };
        S::decode(content.version, &content.body).map_err(|e| StateError::bad(kind, instance, e))
    }

    /// Takes a section out and restores what it is the state of.
    pub fn restore<T: Saved>(&mut self, instance: u32, host: T::Host) -> Result<T, StateError> {
        self.restore_checked(instance, host, |_| Ok(()))
    }

    /// As [`Sections::restore`], with a look at the state first.
    pub fn restore_checked<T: Saved>(
        &mut self,
        instance: u32,
        host: T::Host,
        check: impl FnOnce(&T::State) -> Result<(), BadState>,
    ) -> Result<T, StateError> {
        let state: T::State = self.take(T::KIND, instance)?;
        let restored = check(&state).and_then(|()| T::restore(state, host));
        restored.map_err(|e| StateError::bad(T::KIND, instance, e))
    }

    /// Everything has been taken: a section that is left has no place in the machine.
    pub fn finish(self) -> Result<(), StateError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some((kind, instance)) => Err(StateError::Unexpected { kind, instance }),
        }
    }

    /// Writes all of them, and the end.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        for ((kind, instance), content) in &self.0 {
            write_section(to, kind, *instance, content)?;
        }
        let count = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        write_section(to, END, count, &Content { version: 0, body: vec![] })
    }

    /// Reads up to the end.
    pub fn read(from: &mut impl Read) -> Result<Self, StateError> {
        let mut sections = Self::new();
        loop {
            let (kind, instance, content) = read_section(from, sections.0.len())?;
            if kind == END {
                if u32::try_from(sections.0.len()) != Ok(instance) || !content.body.is_empty() {
                    return Err(StateError::Truncated { place: "the list of sections".into() });
                }
                return Ok(sections);
            }
            sections.insert(kind, instance, content)?;
        }
    }
}

fn is_kind(kind: &str) -> bool {
    !kind.is_empty()
        && kind.len() <= KIND
        && kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn header(kind: &str, instance: u32, content: &Content) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let fields = kind
        .bytes()
        .chain(std::iter::repeat(0))
        .take(KIND)
        .chain(instance.to_le_bytes())
        .chain(content.version.to_le_bytes())
        .chain([0; 2])
        .chain(u32::try_from(content.body.len()).unwrap_or(u32::MAX).to_le_bytes());
    for (to, from) in header.iter_mut().zip(fields) {
        *to = from;
    }
    let (start, crc) = header.split_at_mut(HEADER - 4);
    crc.copy_from_slice(&crc32c(&[start, &content.body]).to_le_bytes());
    header
}

fn write_section(to: &mut impl Write, kind: &str, instance: u32, content: &Content) -> io::Result<()> {
    to.write_all(&header(kind, instance, content))?;
    to.write_all(&content.body)
}

fn read_section(from: &mut impl Read, number: usize) -> Result<(String, u32, Content), StateError> {
    let mut raw = [0; HEADER];
    fill(from, &mut raw, || format!("the header of section {number}"))?;
    let [name @ .., i0, i1, i2, i3, v0, v1, _, _, l0, l1, l2, l3, _, _, _, _] = raw;
    let (instance, version) = (u32::from_le_bytes([i0, i1, i2, i3]), u16::from_le_bytes([v0, v1]));
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    let kind = std::str::from_utf8(name).ok().filter(|kind| is_kind(kind)).ok_or(StateError::BadKind)?;
    if length > MAX_BODY {
        let what = "the length of a section";
        return Err(StateError::TooMuch { what, found: length.into(), most: MAX_BODY.into() });
    }
    let place = || format!("the section {kind} {instance}");
    let mut content = Content { version, body: vec![0; usize::try_from(length).unwrap_or_default()] };
    fill(from, &mut content.body, place)?;
    // Compared as a whole: so the padding is checked too.
    if header(kind, instance, &content) != raw {
        return Err(StateError::Damaged { place: place() });
    }
    Ok((kind.to_owned(), instance, content))
}

fn fill(from: &mut impl Read, bytes: &mut [u8], place: impl FnOnce() -> String) -> Result<(), StateError> {
    from.read_exact(bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StateError::Truncated { place: place() },
        _ => StateError::Io { what: "read the state", source: e },
    })
}

/// CRC-32C (Castagnoli) of the parts, one behind the other.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut n = 0;
        while n < 256 {
            let (mut value, mut bit) = (n as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[n] = value;
            n += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| {
        let [low, ..] = crc.to_le_bytes();
        crc >> 8 ^ TABLE.get(usize::from(low ^ byte)).copied().unwrap_or_default()
    };
    !parts.iter().flat_map(|part| part.iter()).fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::rtc::Rtc;
    use proptest::prelude::*;

    fn rtc() -> Rtc {
        Rtc::new(Box::new(|| 0))
    }

    fn some() -> Sections {
        let mut sections = Sections::new();
        for instance in 0..3 {
            sections.save(&rtc(), instance, StateSet::Current).unwrap();
        }
        sections.put(Piece { kind: "other", version: 7, body: vec![1, 2, 3] }, 9).unwrap();
        sections
    }

    fn bytes(sections: &Sections) -> Vec<u8> {
        let mut bytes = vec![];
        sections.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() {
        let sections = some();
        let mut written = bytes(&sections);
        written.extend(b"what follows is not looked at");
        assert_eq!(Sections::read(&mut written.as_slice()).unwrap(), sections);
    }

    #[test]
    fn each_way_to_be_wrong_has_its_name() {
        let mut sections = some();
        let twice = Piece { kind: "other", version: 7, body: vec![] };
        assert!(matches!(sections.put(twice, 9), Err(StateError::Twice { instance: 9, .. })));
        let long = Piece { kind: "long", version: 0, body: vec![0; MAX_BODY as usize + 1] };
        assert!(matches!(sections.put(long, 0), Err(StateError::TooMuch { .. })));
        let missing = sections.restore::<Rtc>(3, Box::new(|| 0));
        assert!(matches!(missing, Err(StateError::Missing { instance: 3, .. })));
        sections.restore::<Rtc>(0, Box::new(|| 0)).unwrap();
        assert!(matches!(sections.finish(), Err(StateError::Unexpected { .. })));
        let mut odd = Sections::new();
        odd.put(Piece { kind: "rtc", version: 77, body: vec![] }, 0).unwrap();
        assert!(matches!(odd.restore::<Rtc>(0, Box::new(|| 0)), Err(StateError::Bad { .. })));
    }

    #[test]
    fn a_length_is_bounded_before_it_is_believed() {
        let mut header = header("rtc", 0, &Content { version: 1, body: vec![] });
        header[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(Sections::read(&mut header.as_slice()), Err(StateError::TooMuch { .. })));
    }

    proptest! {
        #[test]
        fn any_cut_is_seen(cut in any::<prop::sample::Index>()) {
            let whole = bytes(&some());
            let part = &whole[..cut.index(whole.len())];
            let refused = matches!(Sections::read(&mut &*part), Err(StateError::Truncated { .. }));
            prop_assert!(refused);
        }

        #[test]
        fn any_changed_byte_is_seen(at in any::<prop::sample::Index>(), by in 1u8..) {
            let mut changed = bytes(&some());
            let at = at.index(changed.len());
            changed[at] ^= by;
            prop_assert!(Sections::read(&mut changed.as_slice()).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Sections::read(&mut bytes.as_slice()).is_err());
        }
    }
}
