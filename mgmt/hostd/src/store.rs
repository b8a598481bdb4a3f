//! Documents that survive a power cut: written whole or not at all, with the previous version kept beside.
//!
//! A document is TOML and begins with its `schema` number. A document that does not parse or validate is replaced by its previous
//! version, which the caller is told and must say aloud. A document of a newer schema is refused by name and left alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No document of ours comes near this, in bytes.
const MAX_DOCUMENT: u64 = 16 << 20;

/// What can be kept.
pub trait Document: Serialize + DeserializeOwned {
    /// The schema number that this version writes. It stands in the field `schema`, which the document itself has.
    const SCHEMA: u32;

    /// What makes it valid beyond its form.
    fn validate(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A document as it was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<T> {
    /// There is none, nor a previous one.
    Missing,
    /// As it was written last.
    Good(T),
    /// The last one cannot be used; this is the one before it.
    Previous {
        /// The previous version.
        document: T,
        /// What is wrong with the last one.
        why: String,
    },
}

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation on a file failed.
    #[error("{what} {} failed", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was written by a newer version.
    #[error("{} has schema {found}; this version of hostd knows schema {known} and older: boot the newer version again, or remove the file", .path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: u64,
        /// Ours.
        known: u32,
    },
    /// Neither the last nor the previous version can be used.
    #[error("{} cannot be used ({last}), nor can its previous version ({previous})", .path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with the last one.
        last: String,
        /// What is wrong with the previous one.
        previous: String,
    },
    /// It cannot be written as TOML, or is not valid.
    #[error("{} was not written: {why}", .path.display())]
    NotWritten {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl StoreError {
    /// Whether the file system is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// Where the version before the last is.
pub fn previous(path: &Path) -> PathBuf {
    beside(path, ".previous")
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Reads a document.
pub fn load<T: Document>(path: &Path) -> Result<Found<T>, StoreError> {
    let last = match read_one::<T>(path)? {
        Ok(Some(document)) => return Ok(Found::Good(document)),
        Ok(None) => "it is not there".to_owned(),
        Err(why) => why,
    };
    match read_one::<T>(&previous(path))? {
        Ok(Some(document)) => Ok(Found::Previous { document, why: last }),
        Ok(None) if last == "it is not there" => Ok(Found::Missing),
        Ok(None) => Err(StoreError::Unusable { path: path.into(), last, previous: "it is not there".into() }),
        Err(previous) => Err(StoreError::Unusable { path: path.into(), last, previous }),
    }
}

/// The outer error ends the search, the inner one says why this file is of no use.
fn read_one<T: Document>(path: &Path) -> Result<Result<Option<T>, String>, StoreError> {
    let mut file = match File::open(path) {
        Ok(file) => file.take(MAX_DOCUMENT + 1),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(None)),
        Err(e) => return Ok(Err(format!("it cannot be opened: {e}"))),
    };
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(n) if n as u64 > MAX_DOCUMENT => return Ok(Err("it is too large".into())),
        Ok(_) => {}
        Err(e) => return Ok(Err(format!("it cannot be read: {e}"))),
    }
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(e) => return Ok(Err(format!("it is no TOML: {}", one_line(&e)))),
    };
    match table.get("schema").and_then(toml::Value::as_integer).map(u64::try_from) {
        Some(Ok(found)) if found > u64::from(T::SCHEMA) => {
            return Err(StoreError::Newer { path: path.into(), found, known: T::SCHEMA });
        }
        Some(Ok(found)) if found == u64::from(T::SCHEMA) => {}
        _ => return Ok(Err("it has no schema number that was ever written".into())),
    }
    let document: T = match toml::from_str(&text) {
        Ok(document) => document,
        Err(e) => return Ok(Err(format!("it does not fit: {}", one_line(&e)))),
    };
    Ok(document.validate().map(|()| Some(document)))
}

fn one_line(error: &toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

/// Writes a document with these permissions, keeping the previous version if that can be used.
pub fn save<T: Document>(path: &Path, document: &T, mode: u32) -> Result<(), StoreError> {
    document.validate().map_err(|why| StoreError::NotWritten { path: path.into(), why })?;
    let text = toml::to_string(document)
        .map_err(|e| StoreError::NotWritten { path: path.into(), why: e.to_string() })?;
    // What cannot be read now must not push out a previous version that can.
    let keep = matches!(read_one::<T>(path), Ok(Ok(Some(_))));
    write(path, text.as_bytes(), mode, keep)
}

/// Writes a file whole or not at all. With `keep_previous` the version that it replaces stays beside.
pub fn write(path: &Path, bytes: &[u8], mode: u32, keep_previous: bool) -> Result<(), StoreError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(io("making the directory", dir))?;
    let new = beside(path, ".new");
    let _ = fs::remove_file(&new);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()
    })();
    if let Err(e) = written {
        let _ = fs::remove_file(&new);
        return Err(io("writing", &new)(e));
    }
    if keep_previous {
        let old = beside(path, ".old");
        let _ = fs::remove_file(&old);
        // A link, so that the document is never absent under its own name.
        fs::hard_link(path, &old)
            .and_then(|()| fs::rename(&old, previous(path)))
            .map_err(io("keeping the previous version of", path))?;
    }
    fs::rename(&new, path).map_err(io("replacing", path))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("flushing the directory", dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        schema: u32,
        name: String,
    }

    impl Document for Sample {
        const SCHEMA: u32 = 2;
        fn validate(&self) -> Result<(), String> {
            if self.name.is_empty() { Err("the name is empty".into()) } else { Ok(()) }
        }
    }

    fn sample(name: &str) -> Sample {
        Sample { schema: 2, name: name.into() }
    }

    #[test]
    fn a_broken_document_falls_back_to_the_previous_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/sample.toml");
        assert_eq!(load::<Sample>(&path).unwrap(), Found::Missing);
        save(&path, &sample("first"), 0o600).unwrap();
        save(&path, &sample("second"), 0o600).unwrap();
        assert_eq!(load::<Sample>(&path).unwrap(), Found::Good(sample("second")));
        for broken in ["", "schema = 2", "schema = 2\nname = \"\"", "schema = 1\nname = \"x\"", "not toml"] {
            fs::write(&path, broken).unwrap();
            let found = load::<Sample>(&path).unwrap();
            assert!(
                matches!(&found, Found::Previous { document, .. } if document.name == "first"),
                "{broken}: {found:?}"
            );
        }
        // Saving over the broken one keeps the good previous one.
        save(&path, &sample("third"), 0o600).unwrap();
        fs::write(&path, "broken again").unwrap();
        assert!(
            matches!(load::<Sample>(&path).unwrap(), Found::Previous { document, .. } if document.name == "first")
        );
        fs::remove_file(previous(&path)).unwrap();
        assert!(matches!(load::<Sample>(&path), Err(StoreError::Unusable { .. })));
    }

    #[test]
    fn a_newer_schema_is_refused_by_name_and_an_invalid_document_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.toml");
        save(&path, &sample("kept"), 0o600).unwrap();
        assert!(matches!(save(&path, &sample(""), 0o600), Err(StoreError::NotWritten { .. })));
        assert_eq!(load::<Sample>(&path).unwrap(), Found::Good(sample("kept")));
        fs::write(&path, "schema = 3\nfuture = true").unwrap();
        assert!(matches!(load::<Sample>(&path), Err(StoreError::Newer { found: 3, known: 2, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn random_bytes_in_a_document_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("sample.toml");
            fs::write(&path, &bytes).unwrap();
            let _ = load::<Sample>(&path);
        }
    }
}
