//! A store that several hosts mount, each for itself: a pass-through file system of one flat directory, whose links can be made to
//! hang, to be made and answered with an error, or to be made later.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

/// Nothing is kept by the kernel: what is asked for is what the store holds.
const NO_CACHE: Duration = Duration::ZERO;

/// What becomes of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is made, and answered with this error.
    LostReply(i32),
    /// It is not made before [`Mount::land`], and answered with this error.
    Late(i32),
    /// The store hangs before it is made, until [`Mount::go_on`].
    HangsBefore,
    /// The store hangs after it was made, until [`Mount::go_on`].
    HangsAfter,
}

#[derive(Debug, Default)]
struct State {
    /// What becomes of the next links; those after them are made as they should be.
    faults: VecDeque<Fault>,
    /// Links under way: the file, kept by another name, and the name that it is to get.
    late: Vec<(PathBuf, PathBuf)>,
    /// Links asked for so far.
    links: usize,
    hangs: bool,
    released: bool,
}

#[derive(Debug, Default)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

/// One host's mount of the store.
#[derive(Debug)]
pub(crate) struct Mount {
    at: tempfile::TempDir,
    control: Arc<Control>,
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts the store in the directory `backing`, with this fate of the next links.
    pub(crate) fn new(backing: &Path, faults: &[Fault]) -> io::Result<Self> {
        let control = Arc::new(Control::default());
        control.state.lock().unwrap().faults.extend(faults);
        let aside = backing.with_extension("aside");
        std::fs::create_dir_all(&aside)?;
        let store = Store {
            backing: backing.to_owned(),
            aside,
            control: Arc::clone(&control),
            open: Mutex::default(),
        };
        let at = tempfile::tempdir()?;
        let session = fuser::spawn_mount(store, at.path(), &Config::default())?;
        Ok(Self { at, control, session: Some(session) })
    }

    /// The directory as this host sees it.
    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }

    fn wait(&self, so: impl Fn(&State) -> bool) {
        let state = self.control.state.lock().unwrap();
        let (state, _) = self
            .control
            .changed
            .wait_timeout_while(state, Duration::from_secs(60), |state| !so(state))
            .unwrap();
        assert!(so(&state), "the store does not come so far: {state:?}");
    }

    /// Waits until the store hangs.
    pub(crate) fn await_hang(&self) {
        self.wait(|state| state.hangs);
    }

    /// Waits until that many links were asked for.
    pub(crate) fn await_links(&self, links: usize) {
        self.wait(|state| state.links >= links);
    }

    /// The store answers again.
    pub(crate) fn go_on(&self) {
        self.control.state.lock().unwrap_or_else(PoisonError::into_inner).released = true;
        self.control.changed.notify_all();
    }

    /// The links under way are made now; how many of them found their name free.
    pub(crate) fn land(&self) -> usize {
        let late = std::mem::take(&mut self.control.state.lock().unwrap().late);
        late.iter().filter(|(from, to)| std::fs::hard_link(from, to).is_ok()).count()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A test that failed must not leave a thread in the store: the unmount would wait for it.
        self.go_on();
        self.control.state.lock().unwrap_or_else(PoisonError::into_inner).faults.clear();
        // Detached at once: a take's thread may still be about to close its directory.
        let _ = nix::mount::umount2(self.at.path(), nix::mount::MntFlags::MNT_DETACH);
        drop(self.session.take());
    }
}

struct Store {
    backing: PathBuf,
    /// Where files of late links are kept.
    aside: PathBuf,
    control: Arc<Control>,
    open: Mutex<HashMap<u64, File>>,
}

fn attributes(meta: &Metadata, root: bool) -> FileAttr {
    let kind = if meta.is_dir() { FileType::Directory } else { FileType::RegularFile };
    FileAttr {
        ino: if root { INodeNo::ROOT } else { INodeNo(meta.ino()) },
        size: meta.size(),
        blocks: meta.blocks(),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: (meta.mode() & 0o7777) as u16,
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Store {
    fn attributes_of(&self, ino: INodeNo) -> io::Result<FileAttr> {
        if ino == INodeNo::ROOT {
            return Ok(attributes(&std::fs::metadata(&self.backing)?, true));
        }
        match self.named(ino) {
            Ok(path) => Ok(attributes(&std::fs::symlink_metadata(path)?, false)),
            // Removed while it is open.
            Err(e) => {
                let open = self.open.lock().unwrap();
                let found = open.values().filter_map(|f| f.metadata().ok()).find(|m| m.ino() == ino.0);
                found.map(|meta| attributes(&meta, false)).ok_or(e)
            }
        }
    }

    /// A name of a file that the kernel knows by number.
    fn named(&self, ino: INodeNo) -> io::Result<PathBuf> {
        for entry in std::fs::read_dir(&self.backing)? {
            let entry = entry?;
            if entry.metadata().is_ok_and(|meta| meta.ino() == ino.0) {
                return Ok(entry.path());
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn entry(&self, name: &OsStr) -> io::Result<FileAttr> {
        Ok(attributes(&std::fs::symlink_metadata(self.backing.join(name))?, false))
    }

    fn keep(&self, file: File) -> FileHandle {
        let mut open = self.open.lock().unwrap();
        let handle = open.keys().max().map_or(1, |last| last + 1);
        open.insert(handle, file);
        FileHandle(handle)
    }

    fn with<T>(&self, handle: FileHandle, act: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let open = self.open.lock().unwrap();
        act(open.get(&handle.0).ok_or(io::ErrorKind::NotFound)?)
    }

    /// One thread serves a mount, so while this waits the whole of it hangs, as a hard mount does with its server.
    fn hang(&self) {
        let mut state = self.control.state.lock().unwrap();
        state.hangs = true;
        self.control.changed.notify_all();
        drop(self.control.changed.wait_while(state, |state| !state.released).unwrap());
    }

    fn make_link(&self, from: &Path, name: &OsStr) -> io::Result<FileAttr> {
        std::fs::hard_link(from, self.backing.join(name))?;
        self.entry(name)
    }

    fn link_with_its_fate(&self, ino: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let from = self.named(ino)?;
        let fate = {
            let mut state = self.control.state.lock().unwrap();
            state.links += 1;
            state.faults.pop_front()
        };
        self.control.changed.notify_all();
        match fate {
            None => self.make_link(&from, name),
            Some(Fault::LostReply(errno)) => {
                let _ = self.make_link(&from, name);
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(Fault::Late(errno)) => {
                // Kept by a name of its own: a host that removes its file cannot take it from a link under way.
                let kept = self.aside.join(uuid::Uuid::new_v4().to_string());
                std::fs::hard_link(&from, &kept)?;
                self.control.state.lock().unwrap().late.push((kept, self.backing.join(name)));
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(Fault::HangsBefore) => {
                self.hang();
                self.make_link(&from, name)
            }
            Some(Fault::HangsAfter) => {
                let made = self.make_link(&from, name);
                self.hang();
                made
            }
        }
    }
}

impl Filesystem for Store {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entry(name) {
            Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_of(ino) {
            Ok(attr) => reply.attr(&NO_CACHE, &attr),
            Err(e) => reply.error(e.into()),
        }
    }

    fn create(&self, _: &Request, _: INodeNo, name: &OsStr, mode: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode & 0o7777)
            .open(self.backing.join(name));
        match made.and_then(|file| Ok((self.entry(name)?, self.keep(file)))) {
            Ok((attr, handle)) => {
                reply.created(&NO_CACHE, &attr, Generation(0), handle, FopenFlags::empty());
            }
            Err(e) => reply.error(e.into()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.named(ino).and_then(File::open) {
            Ok(file) => reply.opened(self.keep(file), FopenFlags::empty()),
            Err(e) => reply.error(e.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; size as usize];
        match self.with(handle, |file| file.read_at(&mut data, offset)) {
            Ok(read) => reply.data(&data[..read]),
            Err(e) => reply.error(e.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.with(handle, |file| file.write_all_at(data, offset)) {
            Ok(()) => reply.written(data.len() as u32),
            Err(e) => reply.error(e.into()),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.with(handle, File::sync_all) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.open.lock().unwrap().remove(&handle.0);
        reply.ok();
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match std::fs::remove_file(self.backing.join(name)) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e.into()),
        }
    }

    fn link(&self, _: &Request, ino: INodeNo, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.link_with_its_fate(ino, name) {
            Ok(attr) => reply.entry(&NO_CACHE, &attr, Generation(0)),
            Err(e) => reply.error(e.into()),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let mut entries: Vec<(u64, FileType, OsString)> =
            [".", ".."].map(|name| (1, FileType::Directory, name.into())).into();
        let listed = std::fs::read_dir(&self.backing).into_iter().flatten().flatten();
        entries.extend(
            listed.filter_map(|e| Some((e.metadata().ok()?.ino(), FileType::RegularFile, e.file_name()))),
        );
        for (at, (ino, kind, name)) in entries.into_iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(ino), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match File::open(&self.backing).and_then(|dir| dir.sync_all()) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e.into()),
        }
    }
}
