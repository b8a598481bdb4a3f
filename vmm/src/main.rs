//! Keelson's virtual machine monitor: parses and opens; everything else is in the library.

use clap::Parser;
use keelson_init_control::logging;
use keelson_vmm::cli::Cli;
use keelson_vmm::launch;
use keelson_vmm_control::ExitCode;

fn main() -> std::process::ExitCode {
    let executed = launch::executed_at();
    let cli = Cli::parse();
    logging::init(log::LevelFilter::Info);
    let ended = match cli.setup() {
        Ok(Some(setup)) => launch::run(setup, executed).map_err(|e| logging::chain(&e)),
        Ok(None) => return std::process::ExitCode::SUCCESS,
        Err(e) => Err(logging::chain(&e)),
    };
    let code = ended.unwrap_or_else(|why| {
        log::error!("{why}");
        ExitCode::BadConfig
    });
    std::process::ExitCode::from(code as u8)
}
