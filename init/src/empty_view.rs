//! An empty view of the host for a VM's process: no files, no network, no System V objects, a name of its own. Made in a thread
//! that ends after it has started the process; namespaces belong to a thread, and the thread's child inherits them.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where the empty file system is mounted before it becomes the root.
const EMPTY: &str = "/run/keelson/empty";
/// What must not stay reachable or busy through a VM's view; what is mounted below goes with each.
const HIDDEN: [&str; 5] = ["/state", "/sys", "/proc", "/dev", "/tmp"];

/// Makes the directory that [`within`] needs.
pub(crate) fn prepare() -> std::io::Result<()> {
    std::fs::create_dir_all(EMPTY)
}

/// Runs `spawn` in a thread with an empty view.
pub(crate) fn within(spawn: impl FnOnce() -> Result<i32, Errno> + Send) -> Result<i32, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("empty-view".into()).spawn_scoped(scope, || {
            enter()?;
            spawn()
        });
        let thread = thread.map_err(crate::start::errno)?;
        thread.join().unwrap_or(Err(Errno::ECHILD))
    })
}

fn enter() -> Result<(), Errno> {
    let none: Option<&str> = None;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )?;
    match mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
        // The root of a light host may be a plain directory (chroot); its mounts are private to the lab's namespace then.
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(e) => return Err(e),
    }
    for path in HIDDEN {
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("empty"), EMPTY, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=0555"))?;
    nix::unistd::chdir(Path::new(EMPTY))?;
    // pivot_root(2) refuses the initramfs; moving over the root and chroot have the same effect for a process that has no
    // capability to leave.
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")
}
