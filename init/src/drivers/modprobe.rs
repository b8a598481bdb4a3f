//! The kernel's request for a module: it runs `kernel.modprobe`, which is this program, as `init -q -- NAME`.

use std::process::ExitCode;

use super::loader::Loader;

/// Loads what answers to `name`; 1 when nothing does or it failed.
pub(crate) fn run(name: &str) -> ExitCode {
    let loader = Loader::new();
    let found = loader.tables.answering(name);
    let loaded = found.iter().filter(|module| loader.load(module).is_ok()).count();
    if loaded > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
