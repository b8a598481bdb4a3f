//! The lock file: which exact package files a build takes, and what the archive has newer.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::{Archive, ArchiveError};
use crate::packages::{self, Stanza};
use crate::tools::{self, ToolError};
use crate::wants::{Role, Want, Wants};

/// Version of the lock file's format.
pub const SCHEMA: u32 = 1;

const HEADER: &str = "# The exact package files of a build, each verified against the archive's signed indices when it was written.\n\
    # Written by `keelson-image lock`; a build verifies every file against the SHA-256 here.\n";

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file cannot be read or written.
    #[error("cannot use the lock file {}; run from the top of the source tree or name it with --lock", .path.display())]
    Io {
        /// Where it is looked for.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is damaged.
    #[error("{} is no lock file; `keelson-image lock` writes it anew", .path.display())]
    Parse {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The file is of another version of this program.
    #[error("{} has format {found}, this program writes {SCHEMA}; `keelson-image lock` writes it anew", .path.display())]
    Schema {
        /// Where it is.
        path: PathBuf,
        /// The format it has.
        found: u32,
    },
    /// It could not be spelled as TOML.
    #[error("the lock cannot be written as TOML")]
    Spell(#[from] toml::ser::Error),
    /// The archive has no such package.
    #[error("the archive has no {handle} of series {series:?} in {suites}")]
    Absent {
        /// Name in `parts.toml`.
        handle: String,
        /// Version prefix asked for.
        series: String,
        /// Suites that were looked at.
        suites: String,
    },
    /// The archive could not be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Versions could not be compared.
    #[error("versions cannot be compared")]
    Compare(#[from] ToolError),
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of the format.
    pub schema: u32,
    /// Code name of the release.
    pub release: String,
    /// The packages.
    #[serde(rename = "part")]
    pub parts: Vec<Locked>,
}

/// One package file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locked {
    /// What it is for.
    pub role: Role,
    /// Its name in `parts.toml`.
    pub handle: String,
    /// Package name.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The suite it was taken from.
    pub suite: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Bytes of the file.
    pub size: u64,
    /// Source package.
    pub source: String,
    /// Its version.
    pub source_version: String,
    /// Other source packages that went into it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub built_using: String,
}

impl Locked {
    fn new(want: &Want, stanza: &Stanza) -> Self {
        Self {
            role: want.role,
            handle: want.handle().to_owned(),
            package: stanza.package.clone(),
            version: stanza.version.clone(),
            suite: stanza.suite.clone(),
            sha256: stanza.sha256.clone(),
            size: stanza.size,
            source: stanza.source.clone(),
            source_version: stanza.source_version.clone(),
            built_using: stanza.built_using.clone(),
        }
    }
}

impl Lock {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, LockError> {
        let text =
            fs::read_to_string(path).map_err(|source| LockError::Io { path: path.to_owned(), source })?;
        let lock: Self = toml::from_str(&text)
            .map_err(|source| LockError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        if lock.schema == SCHEMA {
            Ok(lock)
        } else {
            Err(LockError::Schema { path: path.to_owned(), found: lock.schema })
        }
    }

    /// The newest of everything that `wants` names.
    pub fn newest(wants: &Wants, archive: &Archive) -> Result<Self, LockError> {
        let parts = wants.parts.iter().map(|want| newest(wants, want, archive)).collect::<Result<_, _>>()?;
        Ok(Self { schema: SCHEMA, release: wants.release.clone(), parts })
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), LockError> {
        let text = format!("{HEADER}{}", toml::to_string(self)?);
        let io = |source| LockError::Io { path: path.to_owned(), source };
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
        file.write_all(text.as_bytes()).and_then(|()| file.as_file().sync_all()).map_err(io)?;
        // A temporary file is private; this one is part of the tree.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(open).map_err(io)?;
        file.persist(path).map(drop).map_err(|error| io(error.error))
    }
}

/// The newest version of one part that keeps its series.
pub fn newest(wants: &Wants, want: &Want, archive: &Archive) -> Result<Locked, LockError> {
    let handles = archive.stanzas(|name| name == want.handle())?;
    let candidates = match want.via {
        None => handles,
        Some(_) => {
            // The meta package of each suite names the versioned package of that suite.
            let named: BTreeSet<&str> = handles
                .iter()
                .flat_map(|meta| packages::dependency_names(&meta.depends))
                .filter(|name| name.starts_with("linux-image-"))
                .collect();
            archive.stanzas(|name| named.contains(name))?
        }
    };
    let mut best: Option<Stanza> = None;
    for stanza in candidates.into_iter().filter(|stanza| stanza.version.starts_with(&want.series)) {
        let newer = match &best {
            None => true,
            Some(best) => compare(&stanza.version, &best.version)? == Ordering::Greater,
        };
        if newer {
            best = Some(stanza);
        }
    }
    best.map(|stanza| Locked::new(want, &stanza)).ok_or_else(|| LockError::Absent {
        handle: want.handle().to_owned(),
        series: want.series.clone(),
        suites: format!("{}, {}", wants.suites.join(", "), wants.security_suite),
    })
}

/// Debian's order of versions, asked of dpkg itself.
fn compare(left: &str, right: &str) -> Result<Ordering, ToolError> {
    if left == right {
        return Ok(Ordering::Equal);
    }
    let mut dpkg = tools::command("dpkg");
    dpkg.args(["--compare-versions", left, "gt", right]);
    let status = dpkg.status().map_err(|source| ToolError::Start { tool: "dpkg".into(), source })?;
    match status.code() {
        Some(0) => Ok(Ordering::Greater),
        Some(1) => Ok(Ordering::Less),
        _ => Err(ToolError::Failed {
            tool: "dpkg".into(),
            status: status.to_string(),
            said: format!("comparing {left} with {right}"),
        }),
    }
}

/// In words, what differs from `old` to `new`; empty where nothing does.
pub fn changes(old: &[Locked], new: &[Locked]) -> Vec<String> {
    let mut lines = Vec::new();
    for part in new {
        match old.iter().find(|was| was.handle == part.handle) {
            None => lines.push(format!("+ {} {} ({})", part.package, part.version, part.suite)),
            Some(was) if was != part => {
                lines.push(format!("- {} {} sha256 {}", was.package, was.version, was.sha256));
                lines.push(format!(
                    "+ {} {} sha256 {} ({})",
                    part.package, part.version, part.sha256, part.suite
                ));
            }
            Some(_) => {}
        }
    }
    for was in old.iter().filter(|was| !new.iter().any(|part| part.handle == was.handle)) {
        lines.push(format!("- {} {}", was.package, was.version));
    }
    lines
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn locked(handle: &str, version: &str) -> Locked {
        Locked {
            role: Role::Kernel,
            handle: handle.into(),
            package: format!("{handle}-{version}"),
            version: version.into(),
            suite: "trixie".into(),
            sha256: "00".repeat(32),
            size: 1,
            source: "linux".into(),
            source_version: version.into(),
            built_using: String::new(),
        }
    }

    #[test]
    fn a_written_lock_reads_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("parts.lock");
        let lock = Lock {
            schema: SCHEMA,
            release: "trixie".into(),
            parts: vec![locked("a", "1"), locked("b", "2")],
        };
        lock.write(&path).expect("write");
        assert_eq!(Lock::read(&path).expect("read"), lock);
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("parts.lock");
        let lock = Lock { schema: 9, release: "trixie".into(), parts: vec![locked("a", "1")] };
        lock.write(&path).expect("write");
        assert!(matches!(Lock::read(&path), Err(LockError::Schema { found: 9, .. })));
    }

    #[test]
    fn changes_name_both_versions() {
        let (old, new) = ([locked("a", "1"), locked("gone", "1")], [locked("a", "2"), locked("new", "1")]);
        let lines = changes(&old, &new);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("- a-1") && lines[1].starts_with("+ a-2"));
        assert!(changes(&old, &old).is_empty());
    }

    #[test]
    fn versions_are_ordered_as_debian_does() {
        assert_eq!(compare("6.12.118-1", "6.12.99-1").expect("dpkg"), Ordering::Greater);
        assert_eq!(compare("1.0~rc1", "1.0").expect("dpkg"), Ordering::Less);
    }
}
