//! Receiving the bytes of an upload: cut ones are noticed, full stores are told from other failures, zeros take no space.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use keelson_api::{Fault, Problem};

use super::path::DatastorePath;
use crate::problems;

/// How much is read at a time. Blocks of this size that are all zero become holes.
const BLOCK: usize = 256 << 10;
/// After how many bytes the free space is looked at again.
const SPACE_CHECK: u64 = 32 << 20;

/// Copies `body` into `file`. `free` says how much the store can still take; other writers fill it too.
pub(super) fn receive(
    path: &DatastorePath,
    body: &mut dyn Read,
    file: &mut File,
    length: Option<u64>,
    free: &dyn Fn() -> Result<u64, Problem>,
) -> Result<(), Problem> {
    let failed = |e: std::io::Error| problems::file(format!("`{path}` could not be written"), &e);
    let mut block = vec![0u8; BLOCK];
    let mut received = 0u64;
    let mut unchecked = 0u64;
    loop {
        let filled = fill(body, &mut block).map_err(|e| cut(path, received, length, Some(&e)))?;
        let part = block.get(..filled).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        received += filled as u64;
        if part.iter().all(|b| *b == 0) {
            file.seek(SeekFrom::Current(i64::try_from(filled).unwrap_or(0))).map_err(failed)?;
        } else {
            unchecked += filled as u64;
            if unchecked >= SPACE_CHECK {
                unchecked = 0;
                if free()? == 0 {
                    return Err(failed(nix::errno::Errno::ENOSPC.into()));
                }
            }
            file.write_all(part).map_err(failed)?;
        }
        if filled < block.len() {
            break;
        }
    }
    if length.is_some_and(|length| length != received) {
        return Err(cut(path, received, length, None));
    }
    // A hole at the end has no byte of its own yet.
    file.set_len(received).map_err(failed)
}

/// Reads until `block` is full or the body ends.
fn fill(body: &mut dyn Read, block: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match body.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn cut(path: &DatastorePath, received: u64, length: Option<u64>, error: Option<&std::io::Error>) -> Problem {
    let of = length.map_or(String::new(), |length| format!(" of {length}"));
    let why = error.map_or(String::new(), |e| format!(": {e}"));
    let detail = format!("the upload of `{path}` was cut off after {received}{of} bytes{why}");
    Problem::new(Fault::MalformedRequest, detail).remedy("nothing was stored; upload it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn path() -> DatastorePath {
        DatastorePath::parse("[d] f").unwrap()
    }

    #[test]
    fn zeros_become_holes_and_the_content_is_the_same() {
        let mut content = vec![0u8; 8 << 20];
        content[5 << 20] = 7;
        let mut file = tempfile::tempfile().unwrap();
        receive(&path(), &mut content.as_slice(), &mut file, Some(8 << 20), &|| Ok(u64::MAX)).unwrap();
        file.rewind().unwrap();
        let mut back = Vec::new();
        file.read_to_end(&mut back).unwrap();
        assert!(back == content);
        assert!(file.metadata().unwrap().blocks() * 512 <= 1 << 20);
    }

    #[test]
    fn a_store_that_fills_up_meanwhile_is_507() {
        let mut body = std::io::repeat(1).take(64 << 20);
        let mut file = tempfile::tempfile().unwrap();
        let told = receive(&path(), &mut body, &mut file, None, &|| Ok(0)).unwrap_err();
        assert_eq!(told.status, 507);
    }

    #[test]
    fn a_body_that_breaks_off_is_told_with_both_numbers() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        }
        let mut file = tempfile::tempfile().unwrap();
        let told = receive(&path(), &mut (&b"abc"[..]).chain(Broken), &mut file, Some(9), &|| Ok(u64::MAX))
            .unwrap_err();
        assert_eq!(told.fault, Fault::MalformedRequest);
        let told = receive(&path(), &mut &b"abc"[..], &mut file, Some(9), &|| Ok(u64::MAX)).unwrap_err();
        assert!(told.detail.contains("3 of 9"), "{}", told.detail);
    }
}
