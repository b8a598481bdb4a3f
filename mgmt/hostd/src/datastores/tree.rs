//! Files and directories beneath a datastore's root, opened one name at a time: no symbolic link is ever followed, so a path
//! cannot lead out of the datastore whatever lies on it.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, linkat, unlinkat};

/// An open directory.
#[derive(Debug)]
pub struct Directory(OwnedFd);

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// Anything else: a link, a device, a socket. It is left alone.
    Other,
}

impl Kind {
    fn of(stat: &FileStat) -> Self {
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => Self::File,
            SFlag::S_IFDIR => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// One name of a directory, with what stat(2) says of it.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Its size, in bytes.
    pub size: u64,
    /// What it takes on the disk, in bytes.
    pub allocated: u64,
    /// When it was written last: seconds since the epoch, and nanoseconds.
    pub modified: (i64, i32),
}

impl Meta {
    fn of(stat: &FileStat) -> Self {
        Self {
            kind: Kind::of(stat),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            modified: (stat.st_mtime, i32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        }
    }
}

const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Directory {
    /// Opens the root. Here, and only here, a link is followed: where a datastore lies is the host's own affair.
    pub fn root(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// A second handle on it.
    pub fn again(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Opens the directory `name` in it.
    pub fn enter(&self, name: &str) -> io::Result<Self> {
        Ok(Self(openat(&self.0, name, DIRECTORY, Mode::empty())?))
    }

    /// Opens the directory at `names`, one after the other.
    pub fn descend(&self, names: &[String]) -> io::Result<Self> {
        let mut at = self.again()?;
        for name in names {
            at = at.enter(name)?;
        }
        Ok(at)
    }

    /// Makes the directory `name`; fails when the name is taken.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        mkdirat(&self.0, name, Mode::from_bits_truncate(0o700))?;
        self.enter(name)
    }

    /// Opens the regular file `name`. A link, a device or a directory is an error (EINVAL or ELOOP) and never waited for.
    pub fn open(&self, name: &str, access: Access) -> io::Result<File> {
        let mode = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::ReadWrite => OFlag::O_RDWR,
        };
        let flags = mode | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let fd = openat(&self.0, name, flags, Mode::empty())?;
        if Kind::of(&fstat(&fd)?) != Kind::File {
            return Err(Errno::EINVAL.into());
        }
        Ok(File::from(fd))
    }

    /// Makes the regular file `name`, opened for reading and writing; fails when the name is taken.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.0, name, flags, Mode::from_bits_truncate(0o600))?))
    }

    /// What lies under `name`; `None` when nothing does.
    pub fn meta(&self, name: &str) -> io::Result<Option<Meta>> {
        match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// All names in it, but `.` and `..`, in order. Names that are no UTF-8 are left out: no path of ours can say them.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut dir = Dir::openat(&self.0, c".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            if name == c"." || name == c".." || entry.file_type() == Some(Type::Symlink) {
                continue;
            }
            if let Ok(name) = name.to_str() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// All names in it that begin with `prefix`, whatever lies under them, links too.
    pub fn names_with(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut dir = Dir::openat(&self.0, c".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            if let Ok(name) = entry?.file_name().to_str()
                && name.starts_with(prefix)
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// Gives the file `from` the second name `to` within it; fails when the name is taken.
    pub fn link(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(linkat(&self.0, from, &self.0, to, AtFlags::empty())?)
    }

    /// Renames `from` to `to` within it, replacing a file of that name.
    pub fn replace(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.0, from, &self.0, to)?)
    }

    /// Renames `from` to `to` within it; fails when the name is taken.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        match renameat2(&self.0, from, &self.0, to, RenameFlags::RENAME_NOREPLACE) {
            // Some file systems (NFS among them) cannot do both in one step; a directory never replaces one that is not empty.
            Err(Errno::EINVAL) if self.meta(to)?.is_none() => self.replace(from, to),
            other => Ok(other?),
        }
    }

    /// Removes the file `name`; that there is none is fine.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the empty directory `name`.
    pub fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Removes the directory `name` and the regular files directly in it.
    pub fn remove_flat(&self, name: &str) -> io::Result<()> {
        let dir = match self.enter(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for file in dir.names()? {
            dir.remove(&file)?;
        }
        self.remove_directory(name)
    }

    /// Brings names that were made, renamed or removed in it to the disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.0)?)
    }

    /// Writes the whole file `name` so that after a power cut it is either the old or the new one.
    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let temporary = format!("{TEMPORARY}{}", uuid::Uuid::new_v4());
        let written = (|| {
            let mut file = self.create(&temporary)?;
            io::Write::write_all(&mut file, content)?;
            file.sync_all()?;
            self.replace(&temporary, name)?;
            self.sync()
        })();
        if written.is_err() {
            let _ = self.remove(&temporary);
        }
        written
    }

    /// Reads the whole regular file `name`, at most `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let file = self.open(name, Access::Read)?;
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut content)?;
        if content.len() as u64 > limit { Err(Errno::EFBIG.into()) } else { Ok(content) }
    }
}

/// How the names of unfinished files begin: hidden, since no path of a client can name them, and removed at the next start.
pub const TEMPORARY: &str = ".part-";

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_not_followed_anywhere() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("dir")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), inside.path().join("file")).unwrap();
        let root = Directory::root(inside.path()).unwrap();
        assert!(root.enter("dir").is_err());
        assert!(root.descend(&["dir".into(), "secret".into()]).is_err());
        assert!(root.open("file", Access::Read).is_err());
        assert!(root.create("file").is_err());
        assert_eq!(root.meta("file").unwrap().unwrap().kind, Kind::Other);
        assert!(root.names().unwrap().is_empty());
    }

    #[test]
    fn a_fifo_is_no_file_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let root = Directory::root(dir.path()).unwrap();
        assert_eq!(root.open("pipe", Access::Read).unwrap_err().raw_os_error(), Some(Errno::EINVAL as i32));
    }

    #[test]
    fn a_taken_name_is_not_replaced_by_rename_new() {
        let dir = tempfile::tempdir().unwrap();
        let root = Directory::root(dir.path()).unwrap();
        root.make("a").unwrap();
        root.make("b").unwrap();
        assert!(root.rename_new("a", "b").is_err());
        root.rename_new("a", "c").unwrap();
        assert_eq!(root.names().unwrap(), ["b", "c"]);
        root.write("file", b"one").unwrap();
        root.write("file", b"two").unwrap();
        assert_eq!(root.read("file", 3).unwrap(), b"two");
        assert!(root.read("file", 2).is_err());
        assert_eq!(root.names().unwrap(), ["b", "c", "file"]);
    }
}
