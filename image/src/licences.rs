//! The licence texts in the image: of Debian's packages, of the crates in our programs, and the common ones that those refer to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::deb::Files;
use crate::firmware::compress;

/// Texts that copyright files refer to by their place on a Debian system instead of quoting them.
const COMMON: &[&str] = &["Apache-2.0", "GPL-2", "LGPL-2", "LGPL-2.1"];
const COMMON_DIR: &str = "/usr/share/common-licenses";
/// Beginnings of the names of files that hold a crate's terms.
const NAMES: &[&str] = &["license", "licence", "copying", "copyright", "notice", "unlicense"];
/// A terms file beyond this size is something else.
const LARGEST: u64 = 1 << 20;

/// Why the texts are not complete.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the licence text {}", .path.display())]
pub struct LicenceError {
    /// The file.
    pub path: PathBuf,
    /// The system's reason.
    #[source]
    pub source: io::Error,
}

/// Texts by name, not compressed yet.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Licences(BTreeMap<String, Vec<u8>>);

impl Licences {
    /// The texts that others refer to, from the build machine: Debian and Ubuntu have them everywhere.
    pub fn common() -> Result<Self, LicenceError> {
        let read = |name: &&str| {
            let path = Path::new(COMMON_DIR).join(name);
            fs::read(&path)
                .map(|text| (format!("common/{name}"), text))
                .map_err(|source| LicenceError { path, source })
        };
        COMMON.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Adds the texts of a Debian package under the name of its source: packages of one source mostly share them.
    pub fn debian(&mut self, source: &str, package: &str, files: &Files) {
        for name in ["copyright", "license"] {
            let Some(text) = files.get(&format!("usr/share/doc/{package}/{name}")) else { continue };
            let key = format!("debian/{source}");
            match self.0.get(&key) {
                None => {
                    self.0.insert(key, text.to_vec());
                }
                Some(have) if have == text => {}
                Some(_) => {
                    self.0.insert(format!("debian/{package}-{name}"), text.to_vec());
                }
            }
        }
    }

    /// Adds the terms of crates, given as name, version and directory: one document in which a text that many share stands once.
    pub fn crates<'a>(
        &mut self,
        all: impl IntoIterator<Item = (&'a str, &'a str, &'a Path)>,
    ) -> Result<(), LicenceError> {
        let mut users: BTreeMap<Vec<u8>, Vec<String>> = BTreeMap::new();
        for (name, version, dir) in all {
            for text in terms(dir)? {
                users.entry(text).or_default().push(format!("{name} {version}"));
            }
        }
        let mut document = Vec::new();
        for (text, names) in users {
            let mut head = String::new();
            // Writing to a String cannot fail.
            let _ = writeln!(head, "{}\n{}\n", "=".repeat(78), names.join(", "));
            document.extend_from_slice(head.as_bytes());
            document.extend_from_slice(&text);
            document.push(b'\n');
        }
        self.0.insert("crates".into(), document);
        Ok(())
    }

    /// The texts as they go into the image, compressed: they are read once in a blue moon, and take up memory all the time.
    pub fn compressed(&self) -> io::Result<BTreeMap<String, Vec<u8>>> {
        self.0.iter().map(|(name, text)| Ok((format!("{name}.xz"), compress(text)?))).collect()
    }
}

fn terms(dir: &Path) -> Result<Vec<Vec<u8>>, LicenceError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| LicenceError { path, source }
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let name = entry.file_name().to_string_lossy().to_ascii_lowercase();
        let small = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST);
        if small && NAMES.iter().any(|start| name.starts_with(start)) {
            paths.push(entry.path());
        }
    }
    // The order of a directory differs from machine to machine.
    paths.sort();
    paths.iter().map(|path| fs::read(path).map_err(at(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deb::Entry;

    fn package(name: &str, text: &str) -> Files {
        Files(BTreeMap::from([(format!("usr/share/doc/{name}/copyright"), Entry::File(text.into()))]))
    }

    #[test]
    fn packages_of_one_source_share_a_text() {
        let mut licences = Licences::default();
        licences.debian("src", "a", &package("a", "same"));
        licences.debian("src", "b", &package("b", "same"));
        licences.debian("src", "c", &package("c", "other"));
        assert_eq!(licences.0.keys().collect::<Vec<_>>(), ["debian/c-copyright", "debian/src"]);
    }

    #[test]
    fn crates_that_share_a_text_are_listed_above_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, text) in [("a", "MIT of x"), ("b", "MIT of x"), ("c", "MIT of y")] {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).expect("mkdir");
            fs::write(dir.join("LICENSE-MIT"), text).expect("write");
            fs::write(dir.join("lib.rs"), "no terms").expect("write");
        }
        let dirs: Vec<_> = ["a", "b", "c"].iter().map(|name| (*name, dir.path().join(name))).collect();
        let mut licences = Licences::default();
        licences.crates(dirs.iter().map(|(name, dir)| (*name, "1.0", dir.as_path()))).expect("crates");
        let text = String::from_utf8(licences.0["crates"].clone()).expect("text");
        assert!(text.contains("a 1.0, b 1.0\n\nMIT of x\n") && text.contains("c 1.0\n\nMIT of y\n"));
        assert!(!text.contains("no terms"));
    }
}
