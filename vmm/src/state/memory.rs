//! The memory file: guest memory at the offsets that it has in its memfd, with holes where nothing was touched or all is zero, and behind it
//! one page that says to which state it belongs.
//!
//! The last page: `KEELMEMO`, the id of the pair (16 bytes), the size of the memory in bytes (u64, little-endian), CRC-32C of both, zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::StateError;
use super::file::PairId;
use super::sections::crc32c;

/// The size of a page, by which memory is looked at.
pub const PAGE: u64 = 4096;
const MAGIC: [u8; 8] = *b"KEELMEMO";
/// How much is read at once.
const CHUNK: usize = 1 << 20;
const ZEROES: [u8; 64] = [0; 64];

/// A run of bytes that a file holds: first offset, and the offset behind the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first byte.
    pub start: u64,
    /// The byte behind the last.
    pub end: u64,
}

/// The next run of data from `from` on that begins before `end`, cut at `end`. A file system that knows no holes has one run.
pub fn next_run(file: &File, from: u64, end: u64) -> io::Result<Option<Run>> {
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file, at, whence).map(|at| u64::try_from(at).unwrap_or_default())
    };
    if from >= end {
        return Ok(None);
    }
    let start = match seek(from, Whence::SeekData) {
        Ok(start) if start >= end => return Ok(None),
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some(Run { start: from, end })),
        Err(e) => return Err(e.into()),
    };
    Ok(Some(Run { start, end: seek(start, Whence::SeekHole)?.min(end) }))
}

/// Guest memory of `bytes` bytes in the memfd `from` goes to `to`, which is durable when this returns. Returns how many bytes were written.
/// The guest does not run.
pub fn write(from: &File, bytes: u64, to: &File, id: &PairId) -> Result<u64, StateError> {
    let doing = || StateError::doing("write the memory file");
    to.set_len(0).and_then(|()| to.set_len(bytes + PAGE)).map_err(doing())?;
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut written) = (0, 0);
    while let Some(run) =
        next_run(from, at, bytes).map_err(StateError::doing("find what the guest has touched"))?
    {
        at = run.start;
        while at < run.end {
            let length = usize::try_from(run.end - at).map_or(CHUNK, |left| left.min(CHUNK));
            let chunk = buffer.get_mut(..length).unwrap_or_default();
            from.read_exact_at(chunk, at).map_err(StateError::doing("read the guest's memory"))?;
            written += write_pages(chunk, at, to).map_err(doing())?;
            at += u64::try_from(length).unwrap_or_default();
        }
    }
    to.write_all_at(&last_page(id, bytes), bytes).and_then(|()| to.sync_all()).map_err(doing())?;
    Ok(written)
}

/// Writes the pages that are not all zero, neighbours in one call.
fn write_pages(chunk: &[u8], at: u64, to: &File) -> io::Result<u64> {
    let page = usize::try_from(PAGE).unwrap_or_default();
    let (mut written, mut start) = (0, None);
    let pages = chunk.chunks(page).map(is_zero).chain([true]);
    for (index, zero) in pages.enumerate() {
        let offset = index * page;
        match (start, zero) {
            (None, false) => start = Some(offset),
            (Some(from), true) => {
                let run = chunk.get(from..offset.min(chunk.len())).unwrap_or_default();
                to.write_all_at(run, at + u64::try_from(from).unwrap_or_default())?;
                written += u64::try_from(run.len()).unwrap_or_default();
                start = None;
            }
            _ => {}
        }
    }
    Ok(written)
}

fn is_zero(page: &[u8]) -> bool {
    page.chunks(ZEROES.len()).all(|part| ZEROES.starts_with(part))
}

fn last_page(id: &PairId, bytes: u64) -> Vec<u8> {
    let crc = crc32c(&[id, &bytes.to_le_bytes()]);
    let mut page: Vec<u8> =
        MAGIC.into_iter().chain(*id).chain(bytes.to_le_bytes()).chain(crc.to_le_bytes()).collect();
    page.resize(usize::try_from(PAGE).unwrap_or_default(), 0);
    page
}

/// A memory file that belongs to a state.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    bytes: u64,
}

impl MemoryFile {
    /// Checks that `file` is the memory file of the pair `id`, for `bytes` bytes of memory.
    pub fn open(file: File, id: &PairId, bytes: u64) -> Result<Self, StateError> {
        let mut page = vec![0; usize::try_from(PAGE).unwrap_or_default()];
        match file.read_exact_at(&mut page, bytes) {
            Ok(()) if page == last_page(id, bytes) => Ok(Self { file, bytes }),
            Ok(()) if page.starts_with(&MAGIC) => Err(StateError::OtherMemory),
            Ok(()) => Err(StateError::NotOurs { file: "memory file" }),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StateError::Truncated { place: "the memory file".into() })
            }
            Err(source) => Err(StateError::Io { what: "read the memory file", source }),
        }
    }

    /// The size of the memory, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next run of saved memory from `from` on that begins before `end`.
    pub fn next_run(&self, from: u64, end: u64) -> io::Result<Option<Run>> {
        next_run(&self.file, from, end.min(self.bytes))
    }

    /// Reads saved memory.
    pub fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    const ID: PairId = [3; 16];

    fn memory(bytes: u64, pages: &[(u64, u8)]) -> File {
        let name = c"memory";
        let file =
            File::from(nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        for (page, value) in pages {
            file.write_all_at(&[*value; 4096], page * PAGE).unwrap();
        }
        file
    }

    #[test]
    fn bytes_follow_what_was_touched() {
        let (to, bytes) = (tempfile::tempfile().unwrap(), 8 << 30);
        let from = memory(bytes, &[(0, 1), (5, 0), (6, 2), (2_000_000, 3)]);
        assert_eq!(write(&from, bytes, &to, &ID).unwrap(), 3 * PAGE, "a page of zeroes is a hole");
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let file = MemoryFile::open(to, &ID, bytes).unwrap();
        let mut page = [0; 4096];
        file.read(&mut page, 2_000_000 * PAGE).unwrap();
        assert_eq!(page, [3; 4096]);
    }

    #[test]
    fn only_the_memory_of_the_pair_is_taken() {
        let to = tempfile::NamedTempFile::new().unwrap();
        write(&memory(1 << 20, &[(1, 1)]), 1 << 20, to.as_file(), &ID).unwrap();
        let open = |id, bytes| MemoryFile::open(to.reopen().unwrap(), &id, bytes).map(|_| ());
        open(ID, 1 << 20).unwrap();
        assert!(matches!(open([4; 16], 1 << 20), Err(StateError::OtherMemory)));
        assert!(matches!(open(ID, 1 << 19), Err(StateError::NotOurs { .. })));
        assert!(matches!(open(ID, 1 << 21), Err(StateError::Truncated { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_is_read_is_what_was_there(pages in prop::collection::btree_map(0u64..600, 0u8..3, 0..40)) {
            let bytes = 600 * PAGE;
            let pages: Vec<_> = pages.into_iter().collect();
            let (from, to) = (memory(bytes, &pages), tempfile::tempfile().unwrap());
            write(&from, bytes, &to, &ID).unwrap();
            let (mut was, mut is) = (vec![0; bytes as usize], vec![0; bytes as usize]);
            from.read_exact_at(&mut was, 0).unwrap();
            let file = MemoryFile::open(to, &ID, bytes).unwrap();
            let mut at = 0;
            while let Some(run) = file.next_run(at, bytes).unwrap() {
                file.read(&mut is[run.start as usize..run.end as usize], run.start).unwrap();
                at = run.end;
            }
            prop_assert!(was == is);
        }
    }
}
