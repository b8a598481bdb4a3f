//! How a file on a datastore is written: `[datastore1] dir/file`.
//!
//! A path is taken apart once, here; whatever holds a [`DatastorePath`] has names that are plain: no absolute path, no `.` or `..`, no
//! empty part, nothing hidden (names with a leading dot are the host's own), no control character. That it also stays beneath the
//! datastore when it is opened (no symbolic link is followed) is `tree.rs`'s part.

use std::fmt;

use keelson_api::{Fault, Problem};

/// The longest path on a datastore, in bytes.
const MAX_PATH: usize = 1024;
/// The longest name within a path, in bytes (NAME_MAX, less what the suffixes of temporary files need).
const MAX_NAME: usize = 200;
/// The most names in a path.
const MAX_DEPTH: usize = 16;

/// A file or directory on a datastore.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatastorePath {
    datastore: String,
    parts: Vec<String>,
}

/// What is wrong with a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is not of the form `[datastore] path`.
    #[error("`{0}` is not of the form `[datastore1] dir/file`")]
    NoDatastore(String),
    /// It names a datastore and no file on it.
    #[error("`{0}` names no file")]
    NoFile(String),
    /// It is too long or too deep.
    #[error("the path is longer than {MAX_PATH} bytes, {MAX_NAME} bytes in one name, or {MAX_DEPTH} names")]
    TooLong,
    /// One of its names cannot be.
    #[error("`{name}` cannot be part of a path: {why}")]
    BadName {
        /// Which.
        name: String,
        /// Why not.
        why: &'static str,
    },
}

impl PathError {
    /// The fault that a client is told.
    pub fn problem(&self) -> Problem {
        Problem::new(Fault::InvalidDatastorePath, self.to_string())
            .remedy("write it as `[datastore1] dir/file`: relative to the datastore, without `..` and without hidden names")
    }
}

impl DatastorePath {
    /// Reads `[datastore] dir/file`.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let no_datastore = || PathError::NoDatastore(text.chars().take(200).collect());
        let (datastore, path) =
            text.strip_prefix('[').and_then(|rest| rest.split_once(']')).ok_or_else(no_datastore)?;
        let path = path.strip_prefix(' ').unwrap_or(path);
        check_name(datastore).map_err(|_| no_datastore())?;
        let path = Self::on(datastore, path)?;
        if path.parts.is_empty() {
            Err(PathError::NoFile(text.chars().take(200).collect()))
        } else {
            Ok(path)
        }
    }

    /// Reads `dir/file` as a path on `datastore`; an empty text is the datastore's own directory.
    pub fn on(datastore: &str, path: &str) -> Result<Self, PathError> {
        if path.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        let mut parts = Vec::new();
        if !path.is_empty() {
            for name in path.split('/') {
                check_name(name)?;
                parts.push(name.to_owned());
            }
        }
        if parts.len() > MAX_DEPTH {
            return Err(PathError::TooLong);
        }
        Ok(Self { datastore: datastore.into(), parts })
    }

    /// The file `name` in this directory.
    pub fn join(&self, name: &str) -> Result<Self, PathError> {
        check_name(name)?;
        let mut parts = self.parts.clone();
        parts.push(name.into());
        Ok(Self { datastore: self.datastore.clone(), parts })
    }

    /// The datastore.
    pub fn datastore(&self) -> &str {
        &self.datastore
    }

    /// The names, outermost first.
    pub fn parts(&self) -> &[String] {
        &self.parts
    }

    /// The directory that holds it, and its name there; `None` for the datastore's own directory.
    pub fn split(&self) -> Option<(&[String], &str)> {
        self.parts.split_last().map(|(name, parents)| (parents, name.as_str()))
    }

    /// Whether this is `directory` or something beneath it.
    pub fn is_within(&self, directory: &Self) -> bool {
        self.datastore == directory.datastore && self.parts.starts_with(&directory.parts)
    }
}

impl fmt::Display for DatastorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.datastore, self.parts.join("/"))
    }
}

/// Whether `name` can be the name of a file on a datastore.
pub fn check_name(name: &str) -> Result<(), PathError> {
    let bad = |why| Err(PathError::BadName { name: name.chars().take(80).collect(), why });
    match name {
        "" => bad("a name is empty (two slashes, or one at the beginning or the end)"),
        "." | ".." => bad("a path stays on its datastore"),
        _ if name.len() > MAX_NAME => Err(PathError::TooLong),
        _ if name.starts_with('.') => bad("hidden names are the host's own"),
        _ if name.contains(['/', '\\']) => bad("a name has no slash or backslash"),
        _ if name.contains(['[', ']']) => bad("brackets mark the datastore"),
        _ if name.chars().any(char::is_control) => bad("it has a control character"),
        _ if name.trim() != name => bad("it begins or ends with a space"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_and_written_alike() {
        for text in ["[datastore1] a", "[datastore1] dir/file.img", "[datastore1] a b/c d"] {
            assert_eq!(DatastorePath::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(DatastorePath::parse("[datastore1]a/b").unwrap().parts(), ["a", "b"]);
        assert_eq!(DatastorePath::on("datastore1", "").unwrap().split(), None);
    }

    #[test]
    fn paths_that_could_leave_the_datastore_are_refused() {
        let wrong = [
            "",
            "file",
            "/etc/passwd",
            "[datastore1]",
            "[datastore1] ",
            "[datastore1] /etc/passwd",
            "[datastore1] ../x",
            "[datastore1] a/../../x",
            "[datastore1] a//b",
            "[datastore1] a/",
            "[datastore1] ./a",
            "[datastore1] .keelson-datastore",
            "[datastore1] a/.hidden",
            "[datastore1] a\0b",
            "[datastore1] a\nb",
            "[../x] a",
            "[] a",
            "[datastore1] a\\b",
            "[datastore1]  a",
            "[x] [y] z",
        ];
        for text in wrong {
            assert!(DatastorePath::parse(text).is_err(), "{text:?}");
        }
        assert!(DatastorePath::on("d", &"x/".repeat(600)).is_err());
        assert!(DatastorePath::on("d", &"x".repeat(255)).is_err());
    }

    #[test]
    fn within_is_by_whole_names() {
        let dir = DatastorePath::on("d", "web").unwrap();
        assert!(DatastorePath::on("d", "web/disk").unwrap().is_within(&dir));
        assert!(!DatastorePath::on("d", "web1/disk").unwrap().is_within(&dir));
        assert!(!DatastorePath::on("e", "web/disk").unwrap().is_within(&dir));
    }

    proptest::proptest! {
        #[test]
        fn what_is_accepted_is_plain(text in "\\PC{0,80}") {
            if let Ok(path) = DatastorePath::parse(&text) {
                for part in path.parts() {
                    assert!(!part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\0']));
                }
                assert_eq!(DatastorePath::parse(&path.to_string()).unwrap(), path);
            }
        }

        #[test]
        fn hostile_mixtures_never_escape(parts in proptest::collection::vec("(\\.{0,3}|[a-z]{1,3}|/|\\[d\\]| |\0){1,3}", 0..6)) {
            let text = format!("[d] {}", parts.join("/"));
            if let Ok(path) = DatastorePath::parse(&text) {
                assert!(path.parts().iter().all(|p| p != ".." && p != "." && !p.is_empty()));
            }
        }
    }
}
