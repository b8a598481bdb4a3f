//! From the lock to verified files on this machine: the cache first, the archive for what is not in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::archive::{Archive, ArchiveError};
use crate::digest;
use crate::lock::{self, Lock, LockError, Locked};
use crate::wants::{Role, Wants};

/// Why a part could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    /// The lock does not fit the list of parts.
    #[error("parts.lock has nothing for {0}; `keelson-image lock` adds it")]
    Unlocked(String),
    /// The archive signs another file under the same version.
    #[error(
        "the archive signs {package} {version} with SHA-256 {archive}, the lock has {lock}: one of them was altered; \
         `keelson-image lock` takes the archive's after you have looked into it"
    )]
    Disagree {
        /// Package name.
        package: String,
        /// Its version.
        version: String,
        /// What the archive signs.
        archive: String,
        /// What the lock has.
        lock: String,
    },
    /// The cache directory cannot be used.
    #[error("cannot use the cache at {}", .path.display())]
    Io {
        /// The path in question.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The lock failed.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// A package file, verified.
#[derive(Debug, Clone)]
pub struct Part {
    /// What the lock says of it.
    pub locked: Locked,
    /// Where it is.
    pub deb: PathBuf,
}

/// The cache of package files, named by their SHA-256 and verified at each use.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// A cache in `dir`, made if need be.
    pub fn open(dir: &Path) -> Result<Self, PartsError> {
        for sub in ["debs", "replaced"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(|source| PartsError::Io { path, source })?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where apt's own state is kept.
    pub fn apt_home(&self) -> PathBuf {
        self.dir.join("apt")
    }

    /// Where a build keeps what it took from the packages.
    pub fn kept(&self) -> PathBuf {
        self.dir.join("taken")
    }

    fn deb(&self, locked: &Locked) -> PathBuf {
        self.dir.join("debs").join(format!("{}.deb", locked.sha256))
    }

    fn replacement_note(&self, locked: &Locked) -> PathBuf {
        self.dir.join("replaced").join(format!("{}.toml", locked.sha256))
    }

    /// The part, when its file is here and is what the lock says.
    fn have(&self, locked: &Locked) -> Option<Part> {
        let deb = self.deb(locked);
        match digest::of_file(&deb) {
            Ok(sum) if sum == locked.sha256 => Some(Part { locked: locked.clone(), deb }),
            Ok(_) => {
                eprintln!("{} in the cache is damaged and is fetched again", locked.package);
                None
            }
            Err(_) => None,
        }
    }

    /// What stood in for `locked` in an earlier build, after the archive had dropped it.
    fn had_instead(&self, locked: &Locked) -> Option<Part> {
        let text = fs::read_to_string(self.replacement_note(locked)).ok()?;
        self.have(&toml::from_str(&text).ok()?)
    }

    /// All parts of `roles`, from the cache where they are there. `lock` is what the tree says; a part that has left the
    /// archive is replaced by the newest of its series, loudly.
    pub fn obtain(&self, wants: &Wants, lock: &Lock, roles: &[Role]) -> Result<Vec<Part>, PartsError> {
        let mut parts = Vec::new();
        let mut archive = None;
        for want in wants.parts.iter().filter(|want| roles.contains(&want.role)) {
            let locked = lock
                .parts
                .iter()
                .find(|locked| locked.handle == want.handle())
                .ok_or_else(|| PartsError::Unlocked(want.handle().to_owned()))?;
            if let Some(part) = self.have(locked) {
                parts.push(part);
                continue;
            }
            if let Some(part) = self.had_instead(locked) {
                tell_replaced(locked, &part.locked);
                parts.push(part);
                continue;
            }
            let archive = match &archive {
                Some(archive) => archive,
                None => archive.insert(Archive::update(&self.apt_home(), wants)?),
            };
            parts.push(match self.fetch(archive, locked)? {
                Some(part) => part,
                None => {
                    let newer = lock::newest(wants, want, archive)?;
                    tell_replaced(locked, &newer);
                    let part = match self.have(&newer) {
                        Some(part) => part,
                        None => self
                            .fetch(archive, &newer)?
                            .ok_or_else(|| PartsError::Unlocked(newer.package.clone()))?,
                    };
                    self.note_replacement(locked, &newer)?;
                    part
                }
            });
        }
        Ok(parts)
    }

    /// Fetches one locked file; nothing when the archive no longer has it.
    fn fetch(&self, archive: &Archive, locked: &Locked) -> Result<Option<Part>, PartsError> {
        let stanzas = archive.stanzas(|name| name == locked.package)?;
        let Some(stanza) = stanzas.iter().find(|stanza| stanza.version == locked.version) else {
            return Ok(None);
        };
        if stanza.sha256 != locked.sha256 {
            return Err(PartsError::Disagree {
                package: locked.package.clone(),
                version: locked.version.clone(),
                archive: stanza.sha256.clone(),
                lock: locked.sha256.clone(),
            });
        }
        eprintln!("fetching {} {} ({:.1} MB)", locked.package, locked.version, locked.size as f64 / 1e6);
        let deb = self.deb(locked);
        archive.download(stanza, &deb)?;
        Ok(Some(Part { locked: locked.clone(), deb }))
    }

    fn note_replacement(&self, old: &Locked, new: &Locked) -> Result<(), PartsError> {
        let path = self.replacement_note(old);
        let text = toml::to_string(new).map_err(LockError::from)?;
        fs::write(&path, text).map_err(|source| PartsError::Io { path, source })
    }
}

fn tell_replaced(old: &Locked, new: &Locked) {
    eprintln!(
        "{} {} has left the archive; its newest of that series is taken. The lock would change so \
         (`keelson-image lock` keeps it):",
        old.package, old.version
    );
    for line in lock::changes(std::slice::from_ref(old), std::slice::from_ref(new)) {
        eprintln!("  {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::locked;
    use crate::wants::PARTS;

    fn cached(cache: &Cache, handle: &str, bytes: &[u8]) -> Locked {
        let locked = Locked { sha256: digest::of_bytes(bytes), ..locked(handle, "1") };
        fs::write(cache.deb(&locked), bytes).expect("write");
        locked
    }

    #[test]
    fn a_warm_cache_needs_no_archive() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::open(dir.path()).expect("cache");
        let wants = Wants::parse(PARTS).expect("parts.toml");
        let part = cached(&cache, "ovmf", b"deb");
        let lock = Lock { schema: lock::SCHEMA, release: "trixie".into(), parts: vec![part.clone()] };
        let parts = cache.obtain(&wants, &lock, &[Role::Ovmf]).expect("from the cache");
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].locked, part);
        assert!(!cache.apt_home().exists(), "apt was not needed");
    }

    #[test]
    fn a_damaged_file_is_not_taken() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::open(dir.path()).expect("cache");
        let part = cached(&cache, "ovmf", b"deb");
        fs::write(cache.deb(&part), b"dab").expect("write");
        assert!(cache.have(&part).is_none());
    }

    #[test]
    fn a_noted_replacement_is_taken_offline() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::open(dir.path()).expect("cache");
        let (old, new) = (locked("ovmf", "0"), cached(&cache, "ovmf", b"newer"));
        cache.note_replacement(&old, &new).expect("note");
        assert_eq!(cache.had_instead(&old).expect("replacement").locked, new);
    }

    #[test]
    fn a_part_outside_the_lock_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let cache = Cache::open(dir.path()).expect("cache");
        let wants = Wants::parse(PARTS).expect("parts.toml");
        let lock = Lock { schema: lock::SCHEMA, release: "trixie".into(), parts: Vec::new() };
        let error = cache.obtain(&wants, &lock, &[Role::Ovmf]).map(|_| ());
        assert!(matches!(error, Err(PartsError::Unlocked(handle)) if handle == "ovmf"));
    }
}
