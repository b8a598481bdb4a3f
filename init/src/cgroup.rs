//! One control group (cgroup v2) per unit. What a kernel lacks of them is done without: then a unit is killed by its process group.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use keelson_init_control::{UnitId, VmLimits};
use nix::fcntl::{Flock, FlockArg};

/// Where the tree is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// What is switched on for units, where the kernel has it.
const CONTROLLERS: [&str; 4] = ["+memory", "+pids", "+cpu", "+io"];

/// The host's groups: `keelson/<unit>`, or `keelson-light-<name>/<unit>` where hosts share a tree.
#[derive(Debug)]
pub(crate) struct Groups {
    base: Option<PathBuf>,
    /// Says to other light hosts that this one lives.
    _alive: Option<Flock<File>>,
}

/// A unit's group.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    dir: File,
}

impl Groups {
    /// As on a kernel without control groups.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { base: None, _alive: None }
    }

    /// Makes the base, or says why units go without groups.
    pub(crate) fn prepare(light: Option<&str>) -> Self {
        if light.is_some() {
            sweep();
        }
        let name = light.map_or_else(|| "keelson".to_owned(), |name| format!("{LIGHT}{name}"));
        let base = Path::new(MOUNT).join(name);
        match base_at(&base) {
            Ok(alive) => Self { base: Some(base), _alive: alive },
            Err(e) => {
                log::warn!("units run without control groups: {} cannot be used: {e}", base.display());
                Self { base: None, _alive: None }
            }
        }
    }

    /// A group for a unit's next process. Always a new one: a group that was killed once (cgroup.kill) kills what is cloned into it
    /// later, on kernels from 6.13 on, and limits of the process before must not stay. `None` where there are no groups.
    pub(crate) fn open(&self, unit: UnitId, limits: VmLimits) -> Option<Group> {
        let base = self.base.as_ref()?;
        let made = new_below(base, &unit.to_string().replace('/', "-"));
        let made = made.and_then(|path| Ok(Group { dir: File::open(&path)?, path }));
        let group = made.inspect_err(|e| log::warn!("unit {unit} runs without a control group: {e}")).ok()?;
        let limit = |file: &str, value: Option<String>| {
            let Some(value) = value else { return };
            if let Err(e) = fs::write(group.path.join(file), &value) {
                log::info!("unit {unit}: the limit {file} = {value} is not enforced: {e}");
            }
        };
        limit("memory.max", limits.memory_bytes.map(|v| v.to_string()));
        let weight = limits.cpu_weight.unwrap_or_else(|| weight(unit)).clamp(1, 10_000).to_string();
        if limits.cpu_weight.is_some() {
            limit("cpu.weight", Some(weight));
        } else if let Err(e) = fs::write(group.path.join("cpu.weight"), weight) {
            // Not a limit that somebody asked for: where groups have no such file, as in a container, there is nothing to say.
            log::debug!("unit {unit} has no weight of its own: {e}");
        }
        limit("cpu.max", limits.cpu_limit_percent.map(maximum));
        limit("pids.max", limits.threads.map(|v| v.to_string()));
        Some(group)
    }

    /// Kills whatever is left in any group, and removes them.
    pub(crate) fn clear(&self) {
        let Some(base) = &self.base else { return };
        let _ = fs::write(base.join("cgroup.kill"), "1");
        remove_below(base);
        let _ = fs::remove_dir(base);
    }
}

impl Group {
    /// The directory, for clone3(2).
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// SIGKILL to all its processes; false when the kernel cannot.
    pub(crate) fn kill(&self) -> bool {
        fs::write(self.path.join("cgroup.kill"), "1").is_ok()
    }

    /// Removes the group; fails while a process is left in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir(&self.path)
    }
}

/// A unit's share of the processors where they are short (cpu.weight; 100 is the kernel's own). The host must answer, and the network
/// must react, however busy guests are; a screen can wait for both.
fn weight(unit: UnitId) -> u32 {
    match unit {
        UnitId::Netd => 1000,
        UnitId::Hostd => 500,
        UnitId::Dcui(_) => 200,
        UnitId::Vm(_) => 100,
    }
}

/// `cpu.max` for so much of one processor: microseconds in each period of 100 milliseconds. The kernel takes no less than one.
fn maximum(percent: u32) -> String {
    const PERIOD_US: u64 = 100_000;
    format!("{} {PERIOD_US}", (u64::from(percent) * PERIOD_US / 100).max(1000))
}

const LIGHT: &str = "keelson-light-";

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => Ok(()),
    }
}

/// How many groups of one unit may be left by processes that take their time to die.
const LEFT_MAX: u32 = 16;

/// A new directory `name`, or `name.2` and so on while one is still in use.
fn new_below(base: &Path, name: &str) -> io::Result<PathBuf> {
    for n in 1..=LEFT_MAX {
        let path = base.join(if n == 1 { name.to_owned() } else { format!("{name}.{n}") });
        let _ = fs::remove_dir(&path);
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "its earlier processes do not die"))
}

fn base_at(base: &Path) -> io::Result<Option<Flock<File>>> {
    if !Path::new(MOUNT).join("cgroup.procs").exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup v2 tree is mounted"));
    }
    make(base)?;
    for level in [Path::new(MOUNT), base] {
        for controller in CONTROLLERS {
            // Each by itself: one that the kernel lacks, or that a v1 tree holds, must not take the others with it.
            let _ = fs::write(level.join("cgroup.subtree_control"), controller);
        }
    }
    Ok(File::open(base).ok().and_then(|dir| Flock::lock(dir, FlockArg::LockExclusiveNonblock).ok()))
}

/// Removes the groups of light hosts that are gone: nobody holds their lock. One younger than a minute may be about to.
fn sweep() {
    let Ok(entries) = fs::read_dir(MOUNT) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(LIGHT) {
            continue;
        }
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        let locked = File::open(entry.path())
            .ok()
            .and_then(|dir| Flock::lock(dir, FlockArg::LockExclusiveNonblock).ok());
        if locked.is_some() && age.is_some_and(|age| age.as_secs() >= 60) {
            remove_below(&entry.path());
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn remove_below(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_as_the_kernel_wants_it() {
        assert_eq!(maximum(150), "150000 100000");
        assert_eq!(maximum(0), "1000 100000");
        assert_eq!(maximum(u32::MAX), "4294967295000 100000");
    }

    #[test]
    fn a_group_gets_its_weight_and_its_maximum() {
        let base = tempfile::tempdir().unwrap();
        let groups = Groups { base: Some(base.path().to_owned()), _alive: None };
        let id = UnitId::Vm(uuid::Uuid::nil());
        let written = |limits| {
            let group = groups.open(id, limits).unwrap();
            let read = |file: &str| fs::read_to_string(group.path.join(file)).ok();
            (read("cpu.weight"), read("cpu.max"))
        };
        assert_eq!(written(VmLimits::default()), (Some("100".into()), None));
        let limits = VmLimits { cpu_weight: Some(250), cpu_limit_percent: Some(50), ..VmLimits::default() };
        assert_eq!(written(limits), (Some("250".into()), Some("50000 100000".into())));
    }
}
