//! PID 1 of a Keelson host: mounts, drivers, the state partition, units, the descriptor stores, and going down in order. The same
//! program is PID 1 of a light host, in namespaces of another machine.
//!
//! Nothing here may panic: the kernel stops when PID 1 ends. So the crate has no indexing and no unwrap, and what reads foreign
//! bytes is tested with random ones; what is left of the risk is met in [`mod@rescue`].

#![cfg_attr(test, allow(clippy::indexing_slicing))]

mod backoff;
mod cgroup;
mod clock;
mod control;
mod disk;
mod drivers;
mod empty_view;
mod host;
mod hostname;
mod journal;
mod kmsg;
mod light;
mod lines;
mod mounts;
mod power;
mod reactor;
mod rescue;
mod ring;
mod rtc;
mod server;
mod settings;
mod smbios;
mod start;
mod store;
#[allow(unsafe_code)]
mod sys;
mod told;
mod unit;
mod vm;
mod watch;

use std::process::ExitCode;

/// The program: `init` as PID 1 of a server, `init --light WORD…` as PID 1 of a PID namespace.
pub fn run() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    let first = arguments.first().map(String::as_str);
    match first {
        Some("--version") => {
            println!("init (Keelson) {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        // As the kernel calls its modprobe: `-q -- NAME`.
        Some("-q") => match arguments.last().filter(|name| !name.starts_with('-')) {
            Some(name) => drivers::modprobe(name),
            None => ExitCode::FAILURE,
        },
        Some("--grow") => disk::grow_child(arguments.get(1..).unwrap_or_default()),
        Some("--light") => light::run(arguments.get(1..).unwrap_or_default()),
        // The kernel hands on what of its command line it does not know.
        _ if std::process::id() == 1 => server::run(),
        _ => {
            eprintln!(
                "init is the first process of a Keelson host. On another machine: `init --light WORD...` as the first process of a PID namespace."
            );
            ExitCode::from(2)
        }
    }
}
