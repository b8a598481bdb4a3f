//! Starting a VM's process: checked parameters, sockets, a user id of its own, and an empty view of the host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use keelson_init_control::{HOSTD_UID, Refusal, UnitId, VM_UID_BASE, VmLimits};
use nix::errno::Errno;

use crate::clock;
use crate::empty_view;
use crate::host::{Entry, Host};
use crate::journal;
use crate::start::{errno, log_pipe, open_null, text};
use crate::store::check_name;
use crate::sys::child::{self, Plan, Program};
use crate::unit::Unit;

/// The VMM.
const PROGRAM: &str = "/bin/keelson-vmm";
/// Where the sockets of VMs lie.
const SOCKETS: &str = "/run/keelson/vm";
/// The sockets that init makes; no descriptor of a client may have their names.
const OWN_SOCKETS: [&str; 2] = ["control", "console"];

/// What a VM has on the host.
#[derive(Debug)]
pub(crate) struct VmPlace {
    sockets: PathBuf,
    uid: u32,
}

impl VmPlace {
    /// Removes the sockets.
    pub(crate) fn clear(&self) {
        if let Err(e) = fs::remove_dir_all(&self.sockets) {
            log::warn!("{} is left: {e}", self.sockets.display());
        }
    }
}

fn check(fds: &[OwnedFd], names: &[String], keep: &[String]) -> Result<(), Refusal> {
    let bad = |field: &str, problem: String| Err(Refusal::BadParameter { field: field.into(), problem });
    if names.len() != fds.len() {
        return bad("fds", format!("{} names came with {} descriptors", names.len(), fds.len()));
    }
    let mut seen = BTreeSet::new();
    for name in names {
        check_name("fds", name)?;
        if OWN_SOCKETS.contains(&name.as_str()) {
            return bad("fds", format!("`{name}` is a socket that init adds"));
        }
        if !seen.insert(name) {
            return bad("fds", format!("`{name}` is there twice"));
        }
    }
    match keep.iter().find(|name| !seen.contains(name)) {
        Some(name) => bad("keep", format!("no descriptor named `{name}` came with this request")),
        None => Ok(()),
    }
}

impl Host {
    /// Starts a VM's process.
    pub(crate) fn start_vm(
        &self,
        id: UnitId,
        fds: Vec<OwnedFd>,
        names: &[String],
        keep: &[String],
        limits: VmLimits,
    ) -> Result<(), Refusal> {
        check(&fds, names, keep)?;
        let failed = |what: &str, e: &dyn std::fmt::Display| Refusal::Failed {
            what: format!("{what} of {id}"),
            why: e.to_string(),
        };
        let mut core = self.lock();
        if core.powering.is_some() {
            return Err(Refusal::GoingDown);
        }
        if core.units.get(&id).is_some_and(|entry| !entry.unit.ended()) {
            return Err(Refusal::Running(id));
        }
        let taken: BTreeSet<u32> =
            core.units.values().filter_map(|e| e.vm.as_ref()).map(|vm| vm.uid).collect();
        let uid = (VM_UID_BASE..)
            .find(|uid| !taken.contains(uid))
            .ok_or_else(|| failed("a user id", &"all are taken"))?;
        let UnitId::Vm(uuid) = id else {
            return Err(Refusal::NotForThisUnit { unit: id, why: "it is no virtual machine".into() });
        };
        let sockets = Path::new(SOCKETS).join(uuid.to_string());
        let (control, console) = make_sockets(&sockets).map_err(|e| failed("the sockets", &e))?;
        let mut all: Vec<(&str, OwnedFd)> = names.iter().map(String::as_str).zip(fds).collect();
        all.push(("control", control));
        all.push(("console", console));

        let group = self.groups.open(id, limits);
        let place = VmPlace { sockets, uid };
        let mut entry = Entry { unit: Unit::new(id), group, vm: Some(place) };
        let pid = match spawn(id, uid, &all, &entry) {
            Ok(pid) => pid,
            Err(e) => {
                if let Some(vm) = &entry.vm {
                    vm.clear();
                }
                if let Some(group) = &entry.group {
                    let _ = group.remove();
                }
                core.units.remove(&id);
                return Err(failed("the process", &e.desc()));
            }
        };
        entry.unit.started(pid, clock::moment());
        core.units.insert(id, entry);
        log::info!("unit {id} runs as process {pid} under uid {uid}");
        core.publish(id);
        for (name, fd) in all {
            if keep.iter().any(|kept| kept == name) {
                core.store.keep(id, name, fd)?;
            }
        }
        Ok(())
    }
}

/// The listening sockets, which only hostd (and root) can connect to.
fn make_sockets(dir: &Path) -> std::io::Result<(OwnedFd, OwnedFd)> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    // Fresh, and root's until all in it is done: whoever owns a directory can put a link where a name was.
    fs::DirBuilder::new().mode(0o700).create(dir)?;
    let listen = |name: &str| -> std::io::Result<OwnedFd> {
        let path = dir.join(name);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(HOSTD_UID), Some(HOSTD_UID))?;
        Ok(listener.into())
    };
    let sockets = (listen("control.sock")?, listen("console.sock")?);
    chown(dir, Some(HOSTD_UID), Some(HOSTD_UID))?;
    Ok(sockets)
}

fn spawn(id: UnitId, uid: u32, fds: &[(&str, OwnedFd)], entry: &Entry) -> Result<i32, Errno> {
    let program = File::open(PROGRAM).map_err(errno)?;
    let null = open_null()?;
    let (log, errors) = log_pipe()?;
    // The numbers stay as they are here: the child only lets them through exec.
    let listed: Vec<String> = fds.iter().map(|(name, fd)| format!("{name}:{}", fd.as_raw_fd())).collect();
    let plan = Plan {
        program: Program::Open(program.as_fd()),
        arguments: vec![text("keelson-vmm")?, text("unit")?],
        environment: vec![
            text(&format!("KEELSON_UNIT={id}"))?,
            text(&format!("KEELSON_FDS={}", listed.join(",")))?,
        ],
        stdin: null.as_fd(),
        stdout: errors.as_fd(),
        stderr: errors.as_fd(),
        terminal: false,
        keep_open: fds.iter().map(|(_, fd)| fd.as_fd()).collect(),
        uid,
        gid: uid,
        groups: vec![],
        capabilities: 0,
        limits: vec![
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_NOFILE, 4096),
            (libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY),
        ],
        cgroup: entry.group.as_ref().map(crate::cgroup::Group::fd),
        own_pids: true,
    };
    journal::attach(id.to_string(), log);
    empty_view::within(|| child::spawn(&plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fds(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| tempfile::tempfile().unwrap().into()).collect()
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn parameters_are_checked_before_anything_is_made() {
        assert!(check(&fds(2), &names(&["kvm", "memory"]), &names(&["memory"])).is_ok());
        for (n, given, kept) in [
            (1, vec!["kvm", "memory"], vec![]),
            (2, vec!["kvm", "kvm"], vec![]),
            (1, vec!["control"], vec![]),
            (1, vec!["a:b"], vec![]),
            (1, vec!["kvm"], vec!["memory"]),
        ] {
            assert!(check(&fds(n), &names(&given), &names(&kept)).is_err(), "{given:?} {kept:?}");
        }
    }
}
