//! A light host: the same units at the same paths in namespaces of another machine, without drivers, disks and power.

use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use keelson_init_control::{Boot, PowerAction, STEP_MACHINES, StateVolume, Tty, UnitId};

use crate::cgroup::Groups;
use crate::host::Host;
use crate::{clock, control, hostname, journal, mounts, reactor, settings, told};

/// The exit code of a light host that was told to restart: who runs it may start it again.
const RESTART: u8 = 3;
/// Stands for the ESP's `keelson.conf`.
const CONF: &str = "/esp/keelson.conf";

/// Runs a light host to its end: 0 for a shut-down, 3 for a restart, 1 when it could not begin.
pub(crate) fn run(words: &[String]) -> ExitCode {
    // In the machine's own namespaces the mounts and the final kill would hit the machine.
    if std::process::id() != 1 {
        eprintln!(
            "init --light must be the first process of a PID namespace of its own; this is process {}",
            std::process::id()
        );
        return ExitCode::from(2);
    }
    clock::start_here();
    match begin(words) {
        Ok(ExitCode::SUCCESS) => ExitCode::SUCCESS,
        Ok(code) => code,
        Err(e) => {
            eprintln!("this light host cannot run: {e}");
            ExitCode::FAILURE
        }
    }
}

fn begin(words: &[String]) -> std::io::Result<ExitCode> {
    let failed = mounts::light();
    journal::begin(|| File::options().write(true).open("/proc/self/fd/2").into_iter().collect(), None);
    let signals = Arc::new(reactor::signals()?);
    journal::collect(false)?;
    for (what, e) in &failed {
        log::warn!("{what} could not be mounted: {}", e.desc());
    }
    mounts::run_directories()?;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
    let conf = fs::read_to_string(CONF).ok();
    let (words, word_errors) = told::join(&told::arguments(words), conf.as_deref());
    if let Some(level) = words.log {
        log::set_max_level(level);
    }
    for error in &word_errors {
        log::warn!("{error}");
    }
    let open_ports = settings::open_low_ports();
    let consoles: Vec<Tty> =
        [Tty::Tty1, Tty::TtyS0].into_iter().filter(|tty| Path::new(tty.device()).exists()).collect();
    let groups = Groups::prepare(Some(boot_id.get(..8).unwrap_or(&boot_id)));
    let boot = Boot {
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id,
        light: true,
        words,
        word_errors,
        consoles: consoles.clone(),
        ..Boot::default()
    };
    let host = Arc::new(Host::new(true, groups, open_ports, boot)?);
    host.step("mounts");
    mounts::give_hostd_its_devices();
    // The drivers are those of the machine that it runs on.
    host.step(STEP_MACHINES);
    state(&host)?;
    hostname::at_boot(&host.lock().boot.words);
    host.step("state");
    control::serve(&host)?;
    host.add_daemon(UnitId::Netd);
    host.add_daemon(UnitId::Hostd);
    for tty in consoles {
        host.add_daemon(UnitId::Dcui(tty));
    }
    host.step("units");
    reactor::run(&host, &signals);
    let action = host.lock().powering;
    Ok(if action == Some(PowerAction::Reboot) { ExitCode::from(RESTART) } else { ExitCode::SUCCESS })
}

/// A directory /state in the root directory persists as long as that does; without one the host runs from RAM.
fn state(host: &Host) -> std::io::Result<()> {
    if Path::new("/state").is_dir() {
        let size = nix::sys::statvfs::statvfs("/state")
            .map(|v| v.blocks().saturating_mul(v.fragment_size()))
            .unwrap_or(0);
        host.lock().boot.state = Some(StateVolume { device: "/state".into(), bytes: size, grown: false });
    } else {
        host.problem(
            "state-missing",
            "There is no /state in this light host's root directory; it runs from RAM and forgets its configuration when it ends.",
            "Make a directory /state there to keep it.",
        );
        mounts::state_in_ram()?;
    }
    mounts::state_directories()
}
