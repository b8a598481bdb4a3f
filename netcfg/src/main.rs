//! netd: the daemon that holds the host's network, on its own. See docs/network.md.

mod announce;
mod answer;
mod apply;
mod arp;
mod clock;
mod control;
mod daemon;
mod dhcp;
mod linklocal;
mod model;
mod names;
mod observe;
mod pace;
mod plan;
mod resolv;
mod seed;
mod status;
mod store;
#[allow(unsafe_code)]
mod sys;
mod taps;
mod wanted;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use keelson_init_control::{HostWords, logging};
use nix::sys::signal::{SigSet, Signal};

/// What outlives netd's process but not the boot: leases, and the configuration where there is no state partition.
const RUN: &str = "/run/keelson/netd";
const STATE: &str = "/state";
const RESOLV_CONF: &str = "/run/keelson/resolv.conf";

fn main() -> ExitCode {
    logging::init(log::LevelFilter::Info);
    // Blocked before there are threads, so that only the wait below gets them. The network stays as it is when netd ends.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    if let Err(e) = ends.thread_block() {
        log::error!("signals cannot be blocked: {e}");
        return ExitCode::FAILURE;
    }
    let words = host_words();
    if let Some(level) = words.log {
        logging::init(level);
    }
    let listener = match control::bind(Path::new(keelson_netcfg_control::SOCKET)) {
        Ok(listener) => listener,
        Err(e) => {
            log::error!("{} cannot be served: {e}", keelson_netcfg_control::SOCKET);
            return ExitCode::FAILURE;
        }
    };
    let (asks, asked) = tokio::sync::mpsc::unbounded_channel();
    let published = Arc::new(control::Published::default());
    let watched = Arc::clone(&published);
    std::thread::spawn(move || {
        let error = control::run(&listener, asks, watched);
        log::error!("the control socket failed: {error}");
        std::process::exit(1);
    });
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let paths = daemon::Paths { run: RUN.into(), state: STATE.into(), resolv_conf: RESOLV_CONF.into() };
        let ended = runtime.and_then(|runtime| runtime.block_on(daemon::run(paths, words, asked, published)));
        if let Err(e) = ended {
            log::error!("netd cannot go on: {e}");
        }
        std::process::exit(1);
    });
    match ends.wait() {
        Ok(signal) => log::info!("ending at {signal}; the network stays as it is"),
        Err(e) => log::error!("waiting for signals failed: {e}"),
    }
    ExitCode::SUCCESS
}

/// What the host was told at power-on; nothing, where there is no init to say.
fn host_words() -> HostWords {
    let boot = keelson_init_control::Client::connect().and_then(|mut init| init.boot());
    match boot {
        Ok(boot) => boot.words,
        Err(e) => {
            log::warn!("the host words are not known: {}", logging::chain(&e));
            HostWords::default()
        }
    }
}
