//! The console's log: a file of bounded size that holds the newest output.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The most that the file holds, in bytes.
pub const LOG_LIMIT: u64 = 1 << 20;
/// What is kept when the limit is reached: half, so that the file is rewritten seldom.
const KEPT: usize = 512 << 10;

/// The file. It goes on at the end of what it holds already.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    length: u64,
    broken: bool,
}

impl LogFile {
    /// Takes over a regular file, opened for reading and writing.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length, broken: false })
    }

    /// Appends. A file that cannot be written is given up, with one warning: a full disk must not stop a guest.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        if !self.broken
            && let Err(e) = self.try_append(bytes)
        {
            self.broken = true;
            log::warn!("the console log cannot be written, so it ends here: {e}");
        }
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let more = u64::try_from(bytes.len()).unwrap_or_default();
        if self.length.saturating_add(more) > LOG_LIMIT {
            let kept = u64::try_from(KEPT).unwrap_or_default().min(self.length);
            let mut tail = vec![0; usize::try_from(kept).unwrap_or_default()];
            self.file.read_exact_at(&mut tail, self.length - kept)?;
            // From the next line on, so that the log does not begin with half a line.
            let start = tail.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            let tail = tail.get(start..).unwrap_or_default();
            self.file.write_all_at(tail, 0)?;
            self.length = u64::try_from(tail.len()).unwrap_or_default();
            self.file.set_len(self.length)?;
        }
        self.file.write_all_at(bytes, self.length)?;
        self.length += more;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_stays_within_its_limit_and_ends_with_the_newest_line() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"from an earlier run\n", 0).unwrap();
        let mut log = LogFile::new(file.try_clone().unwrap()).unwrap();
        for n in 0..70_000 {
            log.append(format!("line number {n:10}\n").as_bytes());
        }
        let length = file.metadata().unwrap().len();
        assert!((KEPT as u64 - 30..=LOG_LIMIT).contains(&length), "{length}");
        let mut text = vec![0; length as usize];
        file.read_exact_at(&mut text, 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.ends_with("line number      69999\n"));
        let numbers: Vec<u32> =
            text.lines().map(|l| l["line number ".len()..].trim().parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]), "no line is lost or cut within the file");
    }

    #[test]
    fn a_short_log_is_appended_to() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"before, ", 0).unwrap();
        LogFile::new(file.try_clone().unwrap()).unwrap().append(b"after");
        let mut text = [0; 13];
        file.read_exact_at(&mut text, 0).unwrap();
        assert_eq!(&text, b"before, after");
    }
}
