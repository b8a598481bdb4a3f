//! What is inside a Debian package: its files as a map, read through `dpkg-deb` without unpacking to disk.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::tools::{self, ToolError};

/// Why a package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The tool failed.
    #[error("{} cannot be unpacked", .path.display())]
    Tool {
        /// The package file.
        path: PathBuf,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
    /// The archive inside is damaged.
    #[error("{} holds a damaged archive", .path.display())]
    Tar {
        /// The package file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// A file that must be there is not.
    #[error("{package} has no {path}")]
    Absent {
        /// Package name.
        package: String,
        /// Path inside it.
        path: String,
    },
}

/// One file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A regular file.
    File(Vec<u8>),
    /// A symbolic link and where it points.
    Link(String),
}

/// Files by path from the root, without a leading slash; `usr/lib`, `usr/bin` and `usr/sbin` are
/// spelled without `usr`: releases differ in it, and the kernel's loaders look in `lib`.
#[derive(Debug, Default, Clone)]
pub struct Files(pub BTreeMap<String, Entry>);

impl Files {
    /// Reads the files of `deb` whose path `wanted` accepts.
    pub fn read(deb: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, DebError> {
        let tool = |source| DebError::Tool { path: deb.to_owned(), source };
        let mut dpkg = tools::command("dpkg-deb");
        dpkg.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = tools::name_of(&dpkg);
        let mut child =
            dpkg.spawn().map_err(|source| tool(ToolError::Start { tool: name.clone(), source }))?;
        let files = match child.stdout.take() {
            Some(stdout) => from_tar(stdout, wanted),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        let out = child
            .wait_with_output()
            .map_err(|source| tool(ToolError::Start { tool: name.clone(), source }))?;
        if !out.status.success() {
            let said = tools::last_words(&out.stderr);
            return Err(tool(ToolError::Failed { tool: name, status: out.status.to_string(), said }));
        }
        files.map(Self).map_err(|source| DebError::Tar { path: deb.to_owned(), source })
    }

    /// The contents of the file at `path`, links followed.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match self.0.get(&path)? {
                Entry::File(bytes) => return Some(bytes),
                Entry::Link(target) => path = follow(&path, target)?,
            }
        }
        None
    }

    /// As [`Files::get`], with an error that names package and path.
    pub fn need(&self, package: &str, path: &str) -> Result<&[u8], DebError> {
        self.get(path).ok_or_else(|| DebError::Absent { package: package.to_owned(), path: path.to_owned() })
    }

    /// Paths below `prefix`, in order.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .range(prefix.to_owned()..)
            .map(|(path, _)| path.as_str())
            .take_while(move |path| path.starts_with(prefix))
    }
}

fn from_tar(stream: impl Read, wanted: impl Fn(&str) -> bool) -> io::Result<BTreeMap<String, Entry>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let Some(path) = tidy(&String::from_utf8_lossy(&entry.path_bytes())) else { continue };
        if !wanted(&path) {
            continue;
        }
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(path, Entry::File(bytes));
        } else if let Some(target) =
            entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned())
        {
            // A hard link names its target from the root, a symbolic link from where it lies.
            let target =
                if kind.is_hard_link() { format!("/{}", target.trim_start_matches("./")) } else { target };
            files.insert(path, Entry::Link(target));
        }
    }
    // Drained to the end, or dpkg-deb dies of a broken pipe and is taken for failed.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(files)
}

/// A path without `.` and `usr` in front; nothing for the root and for paths that leave it.
fn tidy(path: &str) -> Option<String> {
    let mut clean: Vec<&str> = Vec::new();
    for piece in path.split('/') {
        match piece {
            "" | "." => {}
            ".." => {
                clean.pop()?;
            }
            piece => clean.push(piece),
        }
    }
    if clean.first() == Some(&"usr") && matches!(clean.get(1), Some(&("lib" | "bin" | "sbin"))) {
        clean.remove(0);
    }
    if clean.is_empty() { None } else { Some(clean.join("/")) }
}

fn follow(from: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return tidy(target);
    }
    let dir = from.rsplit_once('/').map_or("", |(dir, _)| dir);
    tidy(&format!("{dir}/{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_and_loops_end() {
        let files = Files(BTreeMap::from([
            ("lib/firmware/a/x".into(), Entry::File(b"x".to_vec())),
            ("lib/firmware/b/y".into(), Entry::Link("../a/x".into())),
            ("lib/firmware/z".into(), Entry::Link("/usr/lib/firmware/b/y".into())),
            ("loop".into(), Entry::Link("loop".into())),
        ]));
        assert_eq!(files.get("lib/firmware/z"), Some(&b"x"[..]));
        assert_eq!(files.get("loop"), None);
        assert_eq!(files.below("lib/firmware/").count(), 3);
    }

    #[test]
    fn a_tar_is_read_into_tidy_paths() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_cksum();
        builder.append_data(&mut header, "./usr/lib/modules/m.ko", &b"hi"[..]).expect("append");
        let bytes = builder.into_inner().expect("tar");
        let files = from_tar(&bytes[..], |path| path.starts_with("lib/")).expect("read");
        assert_eq!(files.get("lib/modules/m.ko"), Some(&Entry::File(b"hi".to_vec())));
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_are_no_package(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2048)) {
            let _ = from_tar(&bytes[..], |_| true);
        }
        #[test]
        fn no_path_leaves_the_root(path in "[a./]{0,30}") {
            if let Some(clean) = tidy(&path) {
                proptest::prop_assert!(!clean.starts_with('/') && !clean.split('/').any(|piece| piece == ".."));
            }
        }
    }
}
