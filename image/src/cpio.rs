//! Writes cpio archives of the `newc` kind, the one that the kernel unpacks, the same bytes for the same tree.

use crate::fixed;
use crate::tree::{Node, Tree};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
const TRAILER: &str = "TRAILER!!!";
/// Length of a `newc` header.
const HEADER: usize = 110;

/// An archive under way.
#[derive(Default)]
pub struct Writer {
    out: Vec<u8>,
    inode: u32,
}

/// What goes into a header besides name and contents.
#[derive(Clone, Copy)]
struct Meta {
    mode: u32,
    links: u32,
    device: (u32, u32),
}

impl Writer {
    /// Adds a regular file without the directories above it, contents aligned to 16 bytes.
    ///
    /// That is how microcode lies in front of an initramfs: the kernel's early search finds a file by its whole name, Intel
    /// processors read it in place and want the alignment, and the unpacking that follows skips a file whose directory does not
    /// exist, so the updates do not stay in memory as files. The name is padded with zero bytes, which end it anyway.
    pub fn early_file(&mut self, path: &str, bytes: &[u8]) {
        let start = self.out.len() + HEADER + path.len() + 1;
        let name = [path.as_bytes(), &vec![0; start.next_multiple_of(16) - start]].concat();
        self.entry(&name, Meta { mode: REGULAR | 0o644, links: 1, device: (0, 0) }, bytes);
    }

    /// Adds all of `tree`.
    pub fn tree(&mut self, tree: &Tree) {
        for (path, node) in tree.iter() {
            let (mode, links, device, bytes) = match node {
                Node::Directory(mode) => (DIRECTORY | mode, 2, (0, 0), &[][..]),
                Node::File(mode, bytes) => (REGULAR | mode, 1, (0, 0), bytes.as_slice()),
                Node::Character(mode, major, minor) => (CHARACTER | mode, 1, (*major, *minor), &[][..]),
            };
            self.entry(path.as_bytes(), Meta { mode, links, device }, bytes);
        }
    }

    /// The finished archive. Another may follow it directly.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0; // The trailer has none.
        self.header(TRAILER.as_bytes(), 0, Meta { mode: 0, links: 1, device: (0, 0) }, 0, 0);
        self.out
    }

    fn entry(&mut self, name: &[u8], meta: Meta, bytes: &[u8]) {
        self.inode += 1;
        // The format has 32 bits for a size; the largest part of an image is a few MB.
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.header(name, self.inode, meta, size, fixed::TIME as u32);
        self.out.extend_from_slice(bytes);
        self.align();
    }

    fn header(&mut self, name: &[u8], inode: u32, meta: Meta, size: u32, time: u32) {
        self.out.extend_from_slice(b"070701");
        let fields = [
            inode,
            meta.mode,
            0, // owner: root
            0,
            meta.links,
            time,
            size,
            0, // the device that the file is on
            0,
            meta.device.0,
            meta.device.1,
            name.len() as u32 + 1,
            0, // checksum: not in this kind
        ];
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(name);
        self.out.push(0);
        self.align();
    }

    fn align(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn an_independent_reader_finds_everything() {
        let mut tree = Tree::default();
        tree.program("bin/netd", *b"program");
        tree.put("dev/console", Node::Character(0o600, 5, 1));
        let mut writer = Writer::default();
        writer.tree(&tree);
        let bytes = writer.finish();

        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = ::cpio::newc::Reader::new(rest).expect("entry");
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).expect("contents");
            seen.push((name, mode, contents));
            rest = reader.finish().expect("next");
        }
        let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["bin", "bin/netd", "dev", "dev/console"]);
        assert_eq!(seen[1].1, 0o100_755);
        assert_eq!(seen[1].2, b"program");
    }

    #[test]
    fn early_files_are_aligned_and_named_exactly() {
        let mut writer = Writer::default();
        writer.early_file("kernel/x86/microcode/AuthenticAMD.bin", b"amd");
        writer.early_file("kernel/x86/microcode/GenuineIntel.bin", b"intel");
        let bytes = writer.finish();
        for (name, contents) in [("AuthenticAMD.bin", &b"amd"[..]), ("GenuineIntel.bin", b"intel")] {
            let at = bytes.windows(contents.len()).position(|w| w == contents).expect("contents");
            assert_eq!(at % 16, 0, "{name}");
            let name_at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).expect("name");
            assert_eq!(bytes[name_at + name.len()], 0, "{name} ends in a zero byte");
        }
        assert!(!bytes.windows(8).any(|w| w == b"0000x86\0"), "no directory entries");
        assert_eq!(bytes.len() % 4, 0);
    }
}
