//! SHA-256 of bytes and files, in the archive's spelling (64 lower-case hexadecimal digits).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The SHA-256 of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> String {
    spell(&Sha256::digest(bytes))
}

/// The SHA-256 of the file at `path`, read in one pass without holding it in memory.
pub fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        match buffer.get(..n) {
            Some(read) if n > 0 => sum.update(read),
            _ => return Ok(spell(&sum.finalize())),
        }
    }
}

fn spell(sum: &[u8]) -> String {
    sum.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_as_sha256sum_does() {
        assert_eq!(of_bytes(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn file_and_bytes_agree() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        std::fs::write(file.path(), &bytes)?;
        assert_eq!(of_file(file.path())?, of_bytes(&bytes));
        Ok(())
    }
}
