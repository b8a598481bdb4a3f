//! The state file: a header of 64 bytes, then the sections. The header is written last, so a file that was never finished is none; and it
//! says whether a machine was brought back from the state, which is possible once.
//!
//! Header, little-endian: `KEELSTAT`; format: u32; used: u32, 0 until it is; id: 16 bytes, the same in the memory file; CRC-32C of format and
//! id: u32; zeroes.

use std::fs::File;
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::StateError;
use super::sections::{Sections, crc32c};

const MAGIC: [u8; 8] = *b"KEELSTAT";
const FORMAT: u32 = 1;
const HEADER: usize = 64;
/// Where the word `used` is.
const USED: u64 = 12;

/// What ties a state file and a memory file together; random.
pub type PairId = [u8; 16];

/// A state file that may be used once.
#[derive(Debug)]
pub struct StateFile(File);

/// What a state file holds.
#[derive(Debug)]
pub struct Opened {
    /// The file, locked for as long as this lives.
    pub file: StateFile,
    /// What its memory file must have too.
    pub id: PairId,
    /// The sections.
    pub sections: Sections,
}

fn header(id: &PairId) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let crc = crc32c(&[&FORMAT.to_le_bytes(), id]);
    let fields =
        MAGIC.into_iter().chain(FORMAT.to_le_bytes()).chain([0; 4]).chain(*id).chain(crc.to_le_bytes());
    for (to, from) in header.iter_mut().zip(fields) {
        *to = from;
    }
    header
}

impl StateFile {
    /// Writes a state to `file`, which is durable when this returns. What the file held before is gone.
    pub fn write(mut file: File, id: &PairId, sections: &Sections) -> Result<Self, StateError> {
        let doing = || StateError::doing("write the state file");
        file.set_len(0).map_err(doing())?;
        let start = u64::try_from(HEADER).unwrap_or_default();
        file.seek(SeekFrom::Start(start)).map_err(doing())?;
        let mut bytes = vec![];
        sections.write(&mut bytes).and_then(|()| file.write_all(&bytes)).map_err(doing())?;
        file.sync_all().map_err(doing())?;
        file.write_all_at(&header(id), 0).and_then(|()| file.sync_data()).map_err(doing())?;
        Ok(Self(file))
    }

    /// Locks and reads a state file that has not been used. It must be open for reading and writing.
    pub fn open(mut file: File) -> Result<Opened, StateError> {
        lock(&file)?;
        let found = read_header(&file)?;
        let [m @ .., f0, f1, f2, f3, u0, u1, u2, u3] = *found.first_chunk::<16>().unwrap_or(&[0; 16]);
        if m != MAGIC {
            return Err(StateError::NotOurs { file: "state file" });
        }
        let format = u32::from_le_bytes([f0, f1, f2, f3]);
        if format != FORMAT {
            return Err(StateError::Format { found: format, known: FORMAT });
        }
        let id: PairId = found.get(16..32).and_then(|id| id.try_into().ok()).unwrap_or_default();
        let mut expected = header(&id);
        expected[12..16].copy_from_slice(&[u0, u1, u2, u3]);
        if expected != found {
            return Err(StateError::Damaged { place: "the state file's header".into() });
        }
        if [u0, u1, u2, u3] != [0; 4] {
            return Err(StateError::Used);
        }
        file.seek(SeekFrom::Start(u64::try_from(HEADER).unwrap_or_default()))
            .map_err(StateError::doing("read the state file"))?;
        let sections = Sections::read(&mut BufReader::new(&file))?;
        Ok(Opened { file: Self(file), id, sections })
    }

    /// Marks the state as used, durably: its machine runs from now on, so it can never be brought back from here again.
    pub fn mark_used(&self) -> Result<(), StateError> {
        lock(&self.0)?;
        let marked = self.mark_locked();
        // Whoever handed the descriptor in may keep it, and the lock with it: from here on the mark says more than the lock.
        let unlocked = set_lock(&self.0, libc::F_UNLCK);
        marked.and(unlocked)
    }

    fn mark_locked(&self) -> Result<(), StateError> {
        let mut used = [0; 4];
        let doing = || StateError::doing("mark the state file as used");
        self.0.read_exact_at(&mut used, USED).map_err(doing())?;
        if used != [0; 4] {
            return Err(StateError::Used);
        }
        self.0.write_all_at(&1u32.to_le_bytes(), USED).and_then(|()| self.0.sync_data()).map_err(doing())
    }
}

fn read_header(file: &File) -> Result<[u8; HEADER], StateError> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => StateError::NotOurs { file: "state file" },
        _ => StateError::Io { what: "read the state file", source: e },
    })?;
    Ok(header)
}

/// Locks the whole file for its open file description, so that of several processes one wins. Twice is as once.
fn lock(file: &File) -> Result<(), StateError> {
    set_lock(file, libc::F_WRLCK)
}

fn set_lock(file: &File, kind: libc::c_int) -> Result<(), StateError> {
    let whole = libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(StateError::Busy),
        Err(e) => Err(StateError::Io {
            what: "lock the state file (it must be open for reading and writing)",
            source: e.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::saved::Piece;
    use proptest::prelude::*;

    fn sections() -> Sections {
        let mut sections = Sections::new();
        sections.put(Piece { kind: "rtc", version: 1, body: vec![5; 100] }, 0).unwrap();
        sections
    }

    fn written() -> (tempfile::NamedTempFile, StateFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let state = StateFile::write(file.reopen().unwrap(), &[7; 16], &sections()).unwrap();
        (file, state)
    }

    #[test]
    fn a_state_is_used_once() {
        let (path, _) = written();
        let opened = StateFile::open(path.reopen().unwrap()).unwrap();
        assert_eq!((opened.id, &opened.sections), ([7; 16], &sections()));
        assert!(matches!(StateFile::open(path.reopen().unwrap()), Err(StateError::Busy)));
        opened.file.mark_used().unwrap();
        assert!(matches!(opened.file.mark_used(), Err(StateError::Used)));
        assert!(matches!(StateFile::open(path.reopen().unwrap()), Err(StateError::Used)));
    }

    #[test]
    fn whoever_saved_cannot_go_on_once_another_has() {
        let (path, saver) = written();
        let opened = StateFile::open(path.reopen().unwrap()).unwrap();
        assert!(matches!(saver.mark_used(), Err(StateError::Busy)));
        opened.file.mark_used().unwrap();
        drop(opened);
        assert!(matches!(saver.mark_used(), Err(StateError::Used)));
    }

    #[test]
    fn a_file_that_was_never_finished_is_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        assert!(matches!(StateFile::open(file), Err(StateError::NotOurs { .. })));
        assert!(matches!(StateFile::open(tempfile::tempfile().unwrap()), Err(StateError::NotOurs { .. })));
    }

    #[test]
    fn another_format_is_refused_by_its_number() {
        let (path, _) = written();
        path.as_file().write_all_at(&9u32.to_le_bytes(), 8).unwrap();
        assert!(matches!(
            StateFile::open(path.reopen().unwrap()),
            Err(StateError::Format { found: 9, known: 1 })
        ));
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_seen(at in any::<prop::sample::Index>(), by in 1u8..) {
            let (path, _) = written();
            let length = path.as_file().metadata().unwrap().len();
            let at = at.index(length as usize) as u64;
            let mut byte = [0];
            path.as_file().read_exact_at(&mut byte, at).unwrap();
            path.as_file().write_all_at(&[byte[0] ^ by], at).unwrap();
            prop_assert!(StateFile::open(path.reopen().unwrap()).is_err());
        }
    }
}
