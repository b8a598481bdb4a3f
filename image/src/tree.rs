//! The file tree of the initramfs while it is put together: what lies where, with which mode; no owners, no times.

use std::collections::BTreeMap;

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory and its permission bits.
    Directory(u32),
    /// A regular file: permission bits and contents.
    File(u32, Vec<u8>),
    /// A character device: permission bits, major, minor.
    Character(u32, u32, u32),
}

/// Nodes by path from the root without a leading slash. The order of a `BTreeMap` puts a directory before what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Puts `node` at `path`, and makes the directories above it.
    pub fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            if let Some(above) = path.get(..at) {
                self.0.entry(above.to_owned()).or_insert(Node::Directory(0o755));
            }
        }
        self.0.insert(path.to_owned(), node);
    }

    /// A file that anybody may read.
    pub fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, Node::File(0o644, bytes.into()));
    }

    /// A file that anybody may run.
    pub fn program(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put(path, Node::File(0o755, bytes.into()));
    }

    /// All nodes in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Bytes of the files whose path starts with `prefix`.
    pub fn bytes_below(&self, prefix: &str) -> u64 {
        self.iter()
            .filter(|(path, _)| path.starts_with(prefix))
            .map(|(_, node)| if let Node::File(_, bytes) = node { bytes.len() as u64 } else { 0 })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_come_before_their_contents() {
        let mut tree = Tree::default();
        tree.program("/bin/netd", *b"x");
        tree.file("usr/share/keelson/manifest.json", *b"{}");
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            ["bin", "bin/netd", "usr", "usr/share", "usr/share/keelson", "usr/share/keelson/manifest.json"]
        );
        assert_eq!(tree.bytes_below("usr/"), 2);
    }
}
