//! How each kind of unit is started: its program, user, capabilities and descriptors. All of it is compiled in.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use keelson_init_control::{HOSTD_UID, Tty, UnitId};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::cgroup::Group;
use crate::host::Host;
use crate::journal;
use crate::sys::child::{self, Plan, Program};

/// Numbers of capabilities (linux/capability.h), as bits.
mod capability {
    pub(super) const CHOWN: u64 = 1;
    pub(super) const DAC_OVERRIDE: u64 = 1 << 1;
    pub(super) const NET_BIND_SERVICE: u64 = 1 << 10;
    pub(super) const NET_ADMIN: u64 = 1 << 12;
    pub(super) const NET_RAW: u64 = 1 << 13;
    pub(super) const SYS_TTY_CONFIG: u64 = 1 << 26;
}

/// What sets one daemon apart from another.
struct Recipe {
    program: &'static str,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: u64,
    /// OOM score adjustment: whom the kernel ends first when memory runs out (VMs have 0).
    oom: i32,
    tty: Option<Tty>,
}

fn recipe(id: UnitId, open_ports: bool) -> Option<Recipe> {
    Some(match id {
        // Root, since it writes network.toml and /proc/sys/net; CHOWN, since it gives its socket to hostd.
        UnitId::Netd => Recipe {
            program: "netd",
            uid: 0,
            gid: 0,
            groups: vec![HOSTD_UID],
            capabilities: capability::CHOWN
                | capability::NET_ADMIN
                | capability::NET_RAW
                | capability::NET_BIND_SERVICE,
            oom: -900,
            tty: None,
        },
        UnitId::Hostd => Recipe {
            program: "hostd",
            uid: HOSTD_UID,
            gid: HOSTD_UID,
            groups: vec![],
            capabilities: if open_ports { 0 } else { capability::NET_BIND_SERVICE },
            oom: -500,
            tty: None,
        },
        // Root, since it draws on a terminal of root's and speaks to hostd's socket, which is hostd's alone.
        UnitId::Dcui(tty) => Recipe {
            program: "dcui",
            uid: 0,
            gid: 0,
            groups: vec![HOSTD_UID],
            capabilities: capability::DAC_OVERRIDE | capability::SYS_TTY_CONFIG,
            oom: -500,
            tty: Some(tty),
        },
        UnitId::Vm(_) => return None,
    })
}

/// Starts a daemon's process.
pub(crate) fn daemon(id: UnitId, group: Option<&Group>, host: &Host) -> Result<i32, Errno> {
    let recipe = recipe(id, host.open_ports).ok_or(Errno::EINVAL)?;
    let null = open_null()?;
    let tty = recipe.tty.map(open_terminal).transpose()?;
    let (log, errors) = log_pipe()?;
    let mut environment =
        vec![text("PATH=/bin:/sbin")?, text("HOME=/")?, text(&format!("KEELSON_UNIT={id}"))?];
    if let Some(tty) = recipe.tty {
        environment.push(text(if tty == Tty::Tty1 { "TERM=linux" } else { "TERM=vt220" })?);
    }
    let plan = Plan {
        program: Program::Path(text(&format!("/bin/{}", recipe.program))?),
        arguments: vec![text(recipe.program)?],
        environment,
        stdin: tty.as_ref().unwrap_or(&null).as_fd(),
        stdout: tty.as_ref().map_or(errors.as_fd(), AsFd::as_fd),
        stderr: errors.as_fd(),
        terminal: tty.is_some(),
        keep_open: vec![],
        uid: recipe.uid,
        gid: recipe.gid,
        groups: recipe.groups,
        capabilities: recipe.capabilities,
        limits: vec![(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, 65_536)],
        cgroup: group.map(Group::fd),
        own_pids: false,
    };
    journal::attach(id.to_string(), log);
    let pid = child::spawn(&plan)?;
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), recipe.oom.to_string());
    Ok(pid)
}

/// A text for exec; one with a NUL in it is no text that init makes.
pub(crate) fn text(s: &str) -> Result<CString, Errno> {
    CString::new(s).map_err(|_| Errno::EINVAL)
}

/// /dev/null.
pub(crate) fn open_null() -> Result<OwnedFd, Errno> {
    let null = File::options().read(true).write(true).open("/dev/null");
    null.map(OwnedFd::from).map_err(errno)
}

/// The pipe of a unit's log: init's end, which never waits, and the unit's.
pub(crate) fn log_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((read, write))
}

/// The system's reason of an error.
pub(crate) fn errno(e: std::io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

/// Opens a console line without waiting for a modem's carrier, and without becoming its owner.
fn open_terminal(tty: Tty) -> Result<OwnedFd, Errno> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK;
    let line =
        File::options().read(true).write(true).custom_flags(flags).open(tty.device()).map_err(errno)?;
    if let Ok(mut settings) = nix::sys::termios::tcgetattr(&line) {
        settings.control_flags |= nix::sys::termios::ControlFlags::CLOCAL;
        let _ = nix::sys::termios::tcsetattr(&line, nix::sys::termios::SetArg::TCSANOW, &settings);
    }
    fcntl(&line, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(line.into())
}
