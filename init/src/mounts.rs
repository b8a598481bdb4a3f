//! The file systems that a host has before anything else runs, and the directories on them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use keelson_init_control::HOSTD_UID;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};

/// A mount: kind, where, flags, options.
type Wanted = (&'static str, &'static str, MsFlags, &'static str);

/// Without devices, set-user-id and programs.
const DATA: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);
const PROC: Wanted = ("proc", "/proc", DATA, "");
const SYS: Wanted = ("sysfs", "/sys", DATA, "");
const RUN: Wanted = ("tmpfs", "/run", DATA, "mode=0755,size=64m");
const CGROUP: Wanted = ("cgroup2", "/sys/fs/cgroup", DATA, "");
const PTS: Wanted =
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), "ptmxmode=0666,mode=0620");

fn try_mount((kind, at, flags, options): Wanted) -> Result<(), Errno> {
    let _ = fs::create_dir_all(at);
    mount(Some(kind), at, Some(kind), flags, Some(options))
}

/// What could not be mounted, with the reason.
pub(crate) type Failed = Vec<(String, Errno)>;

fn all(list: &[Wanted], failed: &mut Failed) {
    for wanted in list {
        match try_mount(*wanted) {
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(e) => failed.push((format!("{} on {}", wanted.0, wanted.1), e)),
        }
    }
}

/// A server's: the kernel gave us its initramfs and nothing else.
pub(crate) fn server() -> Failed {
    umask(Mode::from_bits_truncate(0o022));
    let mut failed = Failed::new();
    let dev: Wanted = ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755");
    let tmp: Wanted = ("tmpfs", "/tmp", DATA, "mode=1777,size=64m");
    all(&[PROC, SYS, dev, RUN, tmp, CGROUP, PTS], &mut failed);
    let shm: Wanted = ("tmpfs", "/dev/shm", DATA, "mode=1777");
    all(&[shm], &mut failed);
    // Not every machine has them.
    for optional in [("pstore", "/sys/fs/pstore", DATA, ""), ("securityfs", "/sys/kernel/security", DATA, "")]
    {
        if Path::new(optional.1).is_dir() {
            let _ = try_mount(optional);
        }
    }
    link_descriptors();
    failed
}

/// The firmware's variables; their file system is a driver, so this comes after the drivers of storage.
pub(crate) fn efi_variables() {
    let at = "/sys/firmware/efi/efivars";
    if Path::new(at).is_dir()
        && let Err(e) = try_mount(("efivarfs", at, DATA, ""))
    {
        log::warn!("the firmware's variables cannot be read: {}", e.desc());
    }
}

/// A light host's: the lab gave us a root directory and namespaces; what it prepared there stays.
pub(crate) fn light() -> Failed {
    umask(Mode::from_bits_truncate(0o022));
    let mut failed = Failed::new();
    all(&[PROC, SYS, CGROUP], &mut failed);
    if !is_mounted("/run") {
        all(&[RUN], &mut failed);
    }
    if !Path::new("/dev/null").exists() {
        let dev: Wanted = ("tmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755,size=1m");
        all(&[dev], &mut failed);
    }
    light_devices();
    if !Path::new("/dev/ptmx").exists() {
        all(&[PTS], &mut failed);
        let _ = std::os::unix::fs::symlink("pts/ptmx", "/dev/ptmx");
    }
    link_descriptors();
    failed
}

/// The nodes of a light host's /dev that are not there yet.
fn light_devices() {
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    let mut nodes = vec![
        ("null".to_owned(), 1, 3, 0o666),
        ("zero".to_owned(), 1, 5, 0o666),
        ("full".to_owned(), 1, 7, 0o666),
        ("random".to_owned(), 1, 8, 0o666),
        ("urandom".to_owned(), 1, 9, 0o666),
        ("tty".to_owned(), 5, 0, 0o666),
        ("net/tun".to_owned(), 10, 200, 0o600),
    ];
    for name in ["kvm", "userfaultfd", "vhost-net", "fuse"] {
        nodes.extend(misc_minor(&misc, name).map(|minor| (name.to_owned(), 10, minor, 0o600)));
    }
    for (name, major, minor, mode) in nodes {
        let path = Path::new("/dev").join(name);
        if !path.exists() {
            let _ = path.parent().map(fs::create_dir_all);
            let _ = mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor));
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        }
    }
}

/// A miscellaneous device's number, from /proc/misc.
fn misc_minor(misc: &str, name: &str) -> Option<u64> {
    let mut lines = misc.lines().filter_map(|line| line.trim().split_once(' '));
    lines.find(|(_, n)| *n == name).and_then(|(minor, _)| minor.parse().ok())
}

/// Whether something is mounted there, other than the root itself.
fn is_mounted(path: &str) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!((fs::metadata(path), fs::metadata("/")), (Ok(here), Ok(root)) if here.dev() != root.dev())
}

fn link_descriptors() {
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
}

/// The directories of the agreed paths. /run/keelson is sticky: hostd makes its own socket there, and cannot remove another's.
pub(crate) fn run_directories() -> std::io::Result<()> {
    let run = Path::new("/run/keelson");
    fs::create_dir_all(run.join("vm"))?;
    chown(run, Some(0), Some(HOSTD_UID))?;
    fs::set_permissions(run, fs::Permissions::from_mode(0o1775))?;
    fs::set_permissions(run.join("vm"), fs::Permissions::from_mode(0o755))?;
    crate::empty_view::prepare()
}

/// Devices that hostd opens for its VMs. On a light host only when the node is the host's own and not the machine's.
pub(crate) fn give_hostd_its_devices() {
    use std::os::unix::fs::MetadataExt;
    let Ok(dev) = fs::metadata("/dev") else { return };
    for name in ["kvm", "userfaultfd", "vhost-net"] {
        let path = Path::new("/dev").join(name);
        let Ok(node) = fs::symlink_metadata(&path) else { continue };
        if node.dev() == dev.dev() {
            let _ = chown(&path, Some(HOSTD_UID), Some(HOSTD_UID));
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        }
    }
}

/// What lies on /state: netd's file in a directory of root's, hostd's in one of its own.
pub(crate) fn state_directories() -> std::io::Result<()> {
    fs::create_dir_all("/state")?;
    fs::set_permissions("/state", fs::Permissions::from_mode(0o755))?;
    for dir in ["/state/hostd", "/state/datastore"] {
        fs::create_dir_all(dir)?;
        chown(dir, Some(HOSTD_UID), Some(HOSTD_UID))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o750))?;
    }
    Ok(())
}

/// A /state in RAM, for a host without a state partition.
pub(crate) fn state_in_ram() -> Result<(), Errno> {
    try_mount(("tmpfs", "/state", DATA, "mode=0755,size=50%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_are_found_by_name() {
        let misc = "126 userfaultfd\n232 kvm\n  1 psaux\n";
        assert_eq!(misc_minor(misc, "kvm"), Some(232));
        assert_eq!(misc_minor(misc, "psaux"), Some(1));
        assert_eq!(misc_minor(misc, "tun"), None);
    }
}
