//! The boot of a server, from the kernel's hand-over to running units. Whatever fails on the way is said and done without: only a
//! host that is up can be repaired from afar.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use keelson_init_control::{Boot, STEP_MACHINES, Tty, UnitId};
use nix::errno::Errno;

use crate::cgroup::Groups;
use crate::disk::{self, Found};
use crate::drivers::{Drivers, Stage};
use crate::host::Host;
use crate::{clock, control, hostname, journal, mounts, reactor, rescue, rtc, settings, smbios, told};

/// Boots and serves for ever.
pub(crate) fn run() -> ! {
    if let Err(e) = begin() {
        log::error!("init cannot serve: {e}; restart the machine");
    }
    // Only reached when a system call failed that cannot fail. The kernel must not see PID 1 end.
    loop {
        std::thread::park();
    }
}

fn begin() -> std::io::Result<()> {
    let kernel_took = clock::now_ms();
    let failed = mounts::server();
    journal::begin(consoles, File::options().write(true).open("/dev/kmsg").ok());
    let signals = Arc::new(reactor::signals()?);
    let drivers = Drivers::begin();
    journal::collect(true)?;
    settings::apply();
    // Ctrl-Alt-Del becomes a signal to us instead of a reset.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");

    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if let Some(level) = told::join(&cmdline, None).0.log {
        log::set_max_level(level);
    }
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let boot = Boot {
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id,
        system_uuid: smbios::system_uuid(),
        ..Boot::default()
    };
    let host = Arc::new(Host::new(false, Groups::prepare(None), settings::open_low_ports(), boot)?);
    rescue::guard(&host, &signals);
    host.step_at("kernel", kernel_took);
    for (what, e) in failed {
        host.problem(
            "mount-failed",
            format!("{what} could not be mounted: {}.", e.desc()),
            "Report this: the image does not fit its kernel.",
        );
    }
    if let Err(e) = mounts::run_directories() {
        log::error!("/run/keelson could not be made: {e}");
    }
    host.step("mounts");
    if let Err(e) = control::serve(&host) {
        host.problem(
            "control-failed",
            format!("The control socket could not be opened: {e}."),
            "Restart the host.",
        );
    }
    if !rtc::set_if_wrong() {
        host.problem(
            "clock-wrong",
            "The hardware clock is not set; this host's clock begins at 1 November 2026.",
            "Set the clock in the firmware's set-up, or give the host a time server.",
        );
    }

    drivers.wait(Stage::FileSystems);
    mounts::efi_variables();
    host.step("filesystems");
    disk::bring_up(&host, &drivers);
    host.step("state");
    drivers.wait(Stage::Words);
    words(&host, &cmdline);
    host.step("words");
    drivers.wait(Stage::Network);
    host.step("network");
    host.add_daemon(UnitId::Netd);
    host.tick();
    units(&host);
    host.step("units");
    journal::show_on_console(false);
    settings::quiet_console();

    let late = Arc::clone(&host);
    let _ = std::thread::Builder::new().name("late".into()).spawn(move || {
        drivers.allow(Stage::Machines);
        drivers.wait(Stage::Machines);
        machines(&late, &drivers);
        late.step(STEP_MACHINES);
        disk::grow_mounted(&late);
        drivers.allow(Stage::Later);
        drivers.wait(Stage::Later);
        for (module, e) in drivers.failures() {
            log::warn!("driver {module} was not loaded: {}", e.desc());
        }
        late.step("drivers");
        drivers.boot_is_over();
    });
    loop {
        reactor::run(&host, &signals);
        log::error!("the main loop ended and is entered again");
    }
}

/// All consoles that the kernel writes to: a person may stand before any of them. /dev/console is only the last.
fn consoles() -> Vec<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let names = active.split_whitespace().map(str::to_owned);
    let open = |name: String| {
        File::options()
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(Path::new("/dev").join(name))
    };
    names.filter_map(|name| open(name).ok()).collect()
}

/// Words of both sources; their mistakes are named on the console and kept.
fn words(host: &Host, cmdline: &str) {
    let state = host.lock().boot.state.as_ref().map(|state| state.device.clone());
    let file = match disk::keelson_conf(state.as_deref()) {
        Found::Nothing => None,
        Found::Text(text) => Some(text),
        Found::Unreadable(why) => {
            host.problem(
                "words-unreadable",
                format!("The host's words could not be read: {why}."),
                "Check the EFI system partition.",
            );
            None
        }
    };
    let (words, errors) = told::join(cmdline, file.as_deref());
    if let Some(level) = words.log {
        log::set_max_level(level);
    }
    for error in &errors {
        log::warn!("{error}");
    }
    hostname::at_boot(&words);
    let mut core = host.lock();
    core.boot.words = words;
    core.boot.word_errors = errors;
}

/// /dev/kvm, or the reason why there is none.
fn machines(host: &Host, drivers: &Drivers) {
    mounts::give_hostd_its_devices();
    if Path::new("/dev/kvm").exists() {
        return;
    }
    let failed = drivers.failures();
    // A driver that finds its processor feature missing says "not supported"; that is no failure of the driver.
    let broken = |(module, e): &&(String, Errno)| {
        module.starts_with("kvm") && !matches!(e, Errno::EOPNOTSUPP | Errno::ENODEV)
    };
    let why = failed.iter().find(broken).map(|(module, e)| format!("{module}: {}", e.desc()));
    let why = why.unwrap_or_else(|| "its processor offers neither AMD-V (SVM) nor Intel VT-x (VMX)".into());
    host.problem(
        "kvm-missing",
        format!("This host cannot run virtual machines: {why}."),
        "Switch hardware virtualisation on in the firmware's set-up (SVM Mode, AMD-V, Intel Virtualization Technology) and restart.",
    );
}

/// hostd, and dcui on each console line that is really there.
fn units(host: &Host) {
    let consoles: Vec<Tty> = [Tty::Tty1, Tty::TtyS0].into_iter().filter(|tty| is_there(*tty)).collect();
    host.lock().boot.consoles.clone_from(&consoles);
    host.add_daemon(UnitId::Hostd);
    for tty in consoles {
        host.add_daemon(UnitId::Dcui(tty));
    }
    host.tick();
}

/// A serial line has a node even where there is no chip; its type is then 0 (PORT_UNKNOWN of linux/serial.h).
fn is_there(tty: Tty) -> bool {
    let kind = tty.device().strip_prefix("/dev/").map(|name| format!("/sys/class/tty/{name}/type"));
    let kind = kind.and_then(|path| fs::read_to_string(path).ok());
    Path::new(tty.device()).exists() && kind.is_none_or(|kind| kind.trim() != "0")
}
