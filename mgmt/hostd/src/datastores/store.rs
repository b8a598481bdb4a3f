//! One datastore: its identity, its space, and what is done with files on it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use keelson_api::{Datastore as Shown, Fault, FileEntry, FileKind, Problem};
use uuid::Uuid;

use super::path::DatastorePath;
use super::tree::{Access, Directory, Kind, Meta, TEMPORARY};
use crate::problems;

/// The file that holds a datastore's UUID: identity is that, not a name or a path.
pub const IDENTITY: &str = ".keelson-datastore";
/// How the directory of a VM that is being made is called until it is complete.
pub const UNFINISHED_VM: &str = ".new-vm-";

/// Files are left this much room, so that settings, VM files and logs can be written when a client has filled the store.
const RESERVE: u64 = 16 << 20;
/// The most entries that are shown of one directory.
const MAX_LISTED: usize = 10_000;
/// How deep leftovers are looked for at start (as deep as a path may be).
const MAX_DEPTH: usize = 16;

/// A datastore that this host can use.
#[derive(Debug)]
pub struct Datastore {
    name: String,
    kind: &'static str,
    root: PathBuf,
    uuid: Uuid,
}

/// Why a datastore cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory cannot be made or read.
    #[error("the datastore {name} at {} cannot be used", .root.display())]
    Directory {
        /// Its name.
        name: String,
        /// Its directory.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its identity cannot be read: it is left alone, since a new identity would make it another datastore.
    #[error(
        "the datastore {name} has a file {IDENTITY} that holds no UUID; restore it, or remove it to give the datastore a new identity"
    )]
    Identity {
        /// Its name.
        name: String,
    },
}

/// What is left on a datastore, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size.
    pub capacity: u64,
    /// What files may still take; the host's reserve is not counted.
    pub free: u64,
}

impl Datastore {
    /// Opens the datastore at `root`, makes its directory and identity when they are missing, and removes unfinished uploads.
    /// Returns also the VMs whose making was cut off by the last end of the host agent; their files are removed.
    pub fn open(name: &str, root: &Path, kind: &'static str) -> Result<(Self, Vec<Uuid>), OpenError> {
        let failed =
            |source: io::Error| OpenError::Directory { name: name.into(), root: root.to_owned(), source };
        std::fs::create_dir_all(root).map_err(failed)?;
        let directory = Directory::root(root).map_err(failed)?;
        let uuid = match directory.read(IDENTITY, 256) {
            Ok(text) => std::str::from_utf8(&text)
                .ok()
                .and_then(|t| Uuid::parse_str(t.trim()).ok())
                .ok_or_else(|| OpenError::Identity { name: name.into() })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let uuid = Uuid::new_v4();
                directory.write(IDENTITY, format!("{uuid}\n").as_bytes()).map_err(failed)?;
                uuid
            }
            Err(e) => return Err(failed(e)),
        };
        let mut unfinished = Vec::new();
        clean(&directory, MAX_DEPTH, &mut unfinished);
        Ok((Self { name: name.into(), kind, root: root.to_owned(), uuid }, unfinished))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its root directory, opened.
    pub fn directory(&self) -> Result<Directory, Problem> {
        Directory::root(&self.root)
            .map_err(|e| problems::file(format!("the datastore {} could not be opened", self.name), &e))
    }

    /// What is left on it.
    pub fn space(&self) -> Result<Space, Problem> {
        let failed = |e: nix::errno::Errno| {
            problems::file(format!("the datastore {} does not say how full it is", self.name), &e.into())
        };
        let stat = nix::sys::statvfs::statvfs(&self.root).map_err(failed)?;
        let block = stat.fragment_size();
        let capacity = stat.blocks().saturating_mul(block);
        let free = stat.blocks_available().saturating_mul(block);
        // A small datastore gives a share of itself instead.
        Ok(Space { capacity, free: free.saturating_sub(RESERVE.min(capacity / 16)) })
    }

    /// As the API shows it.
    pub fn shown(&self) -> Shown {
        let space = self.space();
        let accessible = space.is_ok();
        let Space { capacity, free } = space.unwrap_or(Space { capacity: 0, free: 0 });
        Shown {
            name: self.name.clone(),
            uuid: self.uuid,
            kind: self.kind.into(),
            capacity_bytes: capacity,
            free_bytes: free,
            accessible,
        }
    }

    /// Opens a regular file for reading or for both.
    pub fn open_file(&self, path: &DatastorePath, access: Access) -> Result<File, Problem> {
        let (parents, name) =
            path.split().ok_or_else(|| super::PathError::NoFile(path.to_string()).problem())?;
        let opened = self.directory()?.descend(parents).and_then(|d| d.open(name, access));
        opened.map_err(|e| problems::file(format!("`{path}` could not be opened"), &e))
    }

    /// The entries of a directory, in name order. Hidden ones are the host's own and not shown.
    pub fn list(&self, path: &DatastorePath) -> Result<Vec<FileEntry>, Problem> {
        let failed = |e: io::Error| problems::file(format!("`{path}` could not be listed"), &e);
        let directory = self.directory()?.descend(path.parts()).map_err(failed)?;
        let mut entries = Vec::new();
        for name in directory.names().map_err(failed)?.into_iter().take(MAX_LISTED) {
            let Ok(full) = path.join(&name) else { continue };
            if let Some(meta) = directory.meta(&name).map_err(failed)?
                && let Some(entry) = entry(&full, &meta)
            {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// A regular file's content and length.
    pub fn download(&self, path: &DatastorePath) -> Result<(File, u64), Problem> {
        let file = self.open_file(path, Access::Read)?;
        let length =
            file.metadata().map_err(|e| problems::file(format!("`{path}` could not be read"), &e))?.len();
        Ok((file, length))
    }

    /// Removes a file, or a directory that is empty.
    pub fn delete(&self, path: &DatastorePath) -> Result<(), Problem> {
        let (parents, name) =
            path.split().ok_or_else(|| super::PathError::NoFile(path.to_string()).problem())?;
        let failed = |e: io::Error| problems::file(format!("`{path}` could not be deleted"), &e);
        let directory = self.directory()?.descend(parents).map_err(failed)?;
        match directory.meta(name).map_err(failed)?.map(|m| m.kind) {
            None => return Err(failed(nix::errno::Errno::ENOENT.into())),
            Some(Kind::Other) => return Err(failed(nix::errno::Errno::EINVAL.into())),
            Some(Kind::File) => directory.remove(name).map_err(failed)?,
            Some(Kind::Directory) => directory.remove_directory(name).map_err(failed)?,
        }
        directory.sync().map_err(failed)
    }

    /// Streams `body` into a file and returns what became of it. Nothing is left behind when it fails. `length` is what the client
    /// announced. `may_replace` is asked first, and again just before the new file takes the name; what it then returns is kept until
    /// that is done.
    pub fn upload<G>(
        &self,
        path: &DatastorePath,
        body: &mut dyn Read,
        length: Option<u64>,
        may_replace: &dyn Fn() -> Result<G, Problem>,
    ) -> Result<FileEntry, Problem> {
        let (parents, name) =
            path.split().ok_or_else(|| super::PathError::NoFile(path.to_string()).problem())?;
        let space = self.space()?;
        if let Some(length) = length
            && length > space.free
        {
            let detail = format!(
                "`{path}` of {length} bytes does not fit: {} bytes are free on {}",
                space.free, self.name
            );
            return Err(Problem::new(Fault::NoDiskSpace, detail)
                .remedy("delete files that are not needed, or use a larger datastore"));
        }
        drop(may_replace()?);
        let failed = |e: io::Error| problems::file(format!("`{path}` could not be written"), &e);
        let mut made = Made::new(self.directory()?);
        let directory = made.parents(parents).map_err(failed)?;
        if directory.meta(name).map_err(failed)?.is_some_and(|m| m.kind != Kind::File) {
            return Err(failed(nix::errno::Errno::EISDIR.into()));
        }
        let temporary = format!("{TEMPORARY}{}", Uuid::new_v4());
        let mut file = directory.create(&temporary).map_err(failed)?;
        made.file = Some((directory.again().map_err(failed)?, temporary.clone()));
        super::upload::receive(path, body, &mut file, length, &|| self.space().map(|s| s.free))?;
        file.sync_all().map_err(failed)?;
        let guard = may_replace()?;
        directory.replace(&temporary, name).map_err(failed)?;
        drop(guard);
        made.keep();
        directory.sync().map_err(failed)?;
        let meta = directory.meta(name).map_err(failed)?;
        meta.and_then(|m| entry(path, &m)).ok_or_else(|| failed(nix::errno::Errno::ENOENT.into()))
    }
}

/// What an upload has made so far; removed again unless it is kept.
struct Made {
    root: Option<Directory>,
    directories: Vec<(Directory, String)>,
    file: Option<(Directory, String)>,
}

impl Made {
    fn new(root: Directory) -> Self {
        Self { root: Some(root), directories: Vec::new(), file: None }
    }

    /// The directory at `names`, made where it is missing.
    fn parents(&mut self, names: &[String]) -> io::Result<Directory> {
        let Some(mut at) = self.root.take() else { return Err(nix::errno::Errno::EBADF.into()) };
        for name in names {
            let next = match at.enter(name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => match at.make(name) {
                    // Somebody else made it in between: it is theirs to remove.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => at.enter(name)?,
                    made => {
                        let made = made?;
                        at.sync()?;
                        self.directories.push((at.again()?, name.clone()));
                        made
                    }
                },
                entered => entered?,
            };
            at = next;
        }
        Ok(at)
    }

    fn keep(&mut self) {
        self.file = None;
        self.directories.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some((directory, name)) = self.file.take() {
            let _ = directory.remove(&name);
        }
        while let Some((parent, name)) = self.directories.pop() {
            // Another upload may have put something into it meanwhile: then it stays.
            let _ = parent.remove_directory(&name);
        }
    }
}

fn entry(path: &DatastorePath, meta: &Meta) -> Option<FileEntry> {
    let kind = match meta.kind {
        Kind::File => FileKind::File,
        Kind::Directory => FileKind::Directory,
        Kind::Other => return None,
    };
    let (seconds, nanoseconds) = meta.modified;
    let modified = jiff::Timestamp::new(seconds, nanoseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Some(FileEntry {
        path: path.to_string(),
        kind,
        size_bytes: meta.size,
        allocated_bytes: meta.allocated,
        modified,
    })
}

/// Removes what unfinished uploads and unfinished VMs left. Failures are logged: a leftover is no reason not to start.
fn clean(directory: &Directory, depth: usize, unfinished: &mut Vec<Uuid>) {
    let names = match directory.names() {
        Ok(names) => names,
        Err(e) => return log::warn!("leftovers on a datastore cannot be looked for: {e}"),
    };
    for name in names {
        let cleaned = if name.starts_with(TEMPORARY) {
            log::info!("an unfinished file is removed: {name}");
            directory.remove(&name)
        } else if let Some(id) = name.strip_prefix(UNFINISHED_VM) {
            log::info!("an unfinished VM is removed: {id}");
            unfinished.extend(Uuid::parse_str(id));
            directory.remove_flat(&name)
        } else {
            match directory.meta(&name) {
                Ok(Some(meta)) if meta.kind == Kind::Directory && depth > 0 => match directory.enter(&name) {
                    Ok(inner) => {
                        clean(&inner, depth - 1, unfinished);
                        Ok(())
                    }
                    Err(e) => Err(e),
                },
                other => other.map(|_| ()),
            }
        };
        if let Err(e) = cleaned {
            log::warn!("{name} on a datastore cannot be looked at or removed: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Datastore) {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Datastore::open("d", dir.path(), "local").unwrap();
        (dir, store)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_identity_stays_and_a_broken_one_is_not_replaced() {
        let (dir, first) = store();
        let (second, _) = Datastore::open("d", dir.path(), "local").unwrap();
        assert_eq!(first.shown().uuid, second.shown().uuid);
        std::fs::write(dir.path().join(IDENTITY), "nonsense").unwrap();
        assert!(matches!(Datastore::open("d", dir.path(), "local"), Err(OpenError::Identity { .. })));
        assert_eq!(std::fs::read_to_string(dir.path().join(IDENTITY)).unwrap(), "nonsense");
    }

    #[test]
    fn an_upload_makes_its_directory_and_a_cut_one_leaves_nothing() {
        let (dir, store) = store();
        let before = names(dir.path());
        let path = DatastorePath::parse("[d] a/b/file").unwrap();
        let mut half: &[u8] = b"half";
        let told = store.upload(&path, &mut half, Some(8), &|| Ok(())).unwrap_err();
        assert_eq!(told.status, 400);
        assert_eq!(names(dir.path()), before);
        let mut whole: &[u8] = b"whole...";
        let entry = store.upload(&path, &mut whole, Some(8), &|| Ok(())).unwrap();
        assert_eq!((entry.size_bytes, entry.path.as_str()), (8, "[d] a/b/file"));
        assert_eq!(store.list(&DatastorePath::on("d", "a/b").unwrap()).unwrap().len(), 1);
        assert_eq!(
            store.delete(&DatastorePath::parse("[d] a").unwrap()).unwrap_err().fault,
            Fault::FileInUse
        );
        assert_eq!(names(&dir.path().join("a/b")), ["file"]);
    }

    #[test]
    fn what_allows_a_replacement_is_held_until_the_name_is_taken() {
        struct Held(std::path::PathBuf, std::rc::Rc<std::cell::RefCell<Vec<String>>>);
        impl Drop for Held {
            fn drop(&mut self) {
                self.1.borrow_mut().push(std::fs::read_to_string(&self.0).unwrap());
            }
        }
        let (dir, store) = store();
        std::fs::write(dir.path().join("file"), "old").unwrap();
        let seen = std::rc::Rc::default();
        let path = DatastorePath::parse("[d] file").unwrap();
        let allow = || Ok(Held(dir.path().join("file"), std::rc::Rc::clone(&seen)));
        store.upload(&path, &mut &b"new"[..], Some(3), &allow).unwrap();
        assert_eq!(*seen.borrow(), ["old", "new"]);
    }

    #[test]
    fn more_than_is_free_is_refused_before_a_byte_is_read() {
        let (dir, store) = store();
        let before = names(dir.path());
        let mut body = io::repeat(1);
        let path = DatastorePath::parse("[d] big").unwrap();
        let told = store.upload(&path, &mut body, Some(u64::MAX), &|| Ok(())).unwrap_err();
        assert_eq!(told.status, 507);
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn leftovers_are_removed_at_start() {
        let (dir, _) = store();
        std::fs::create_dir_all(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/.part-1"), "x").unwrap();
        let id = Uuid::new_v4();
        let unfinished = dir.path().join(format!("{UNFINISHED_VM}{id}"));
        std::fs::create_dir_all(&unfinished).unwrap();
        std::fs::write(unfinished.join("disk0.img"), "x").unwrap();
        let (_, found) = Datastore::open("d", dir.path(), "local").unwrap();
        assert_eq!(found, [id]);
        assert_eq!(names(dir.path()), [IDENTITY, "a"]);
        assert!(names(&dir.path().join("a")).is_empty());
    }
}
