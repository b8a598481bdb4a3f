//! The host agent's process: reads its arguments and starts what the library holds.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use keelson_hostd::agent::Agent;
use keelson_hostd::front::{self, Front};
use keelson_hostd::http::Router;
use keelson_hostd::paths::Paths;
use keelson_hostd::routes;
use keelson_hostd::services::Services;
use keelson_init_control::logging::{self, chain};
use keelson_init_control::{AddressWord, Boot};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "usage: hostd [--state DIR] [--datastore DIR] [--run DIR] [--listen ADDRESS:PORT]...

  --state DIR       hostd's documents (/state/hostd)
  --datastore DIR   the local datastore (/state/datastore)
  --run DIR         the sockets of init, netd, hostd and the VMs (/run/keelson)
  --listen A:P      serve HTTPS there instead of on the management adapters, for development";

/// What the arguments say.
#[derive(Debug, Default)]
struct Arguments {
    paths: Paths,
    listen: Vec<SocketAddr>,
}

fn arguments(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--state" => arguments.paths.state = PathBuf::from(value()?),
            "--datastore" => arguments.paths.datastore = PathBuf::from(value()?),
            "--run" => arguments.paths.run = PathBuf::from(value()?),
            "--listen" => {
                let text = value()?;
                arguments
                    .listen
                    .push(text.parse().map_err(|_| format!("`{text}` is no address with a port"))?);
            }
            _ => return Err(format!("`{word}` is no argument of hostd")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    logging::init(log::LevelFilter::Info);
    let arguments = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(e) => {
            eprintln!("hostd: {e}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error!("hostd ends: {}", chain(&*e));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Before any thread starts: threads inherit it, and only the wait below takes the signals.
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    ends.thread_block()?;
    // A connection takes about six descriptors; init has set the hard limit.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    let boot = boot(&arguments.paths);
    if let Some(level) = boot.as_ref().and_then(|b| b.words.log) {
        logging::init(level);
    }
    let addresses: Vec<IpAddr> = match boot.as_ref().and_then(|b| b.words.address) {
        Some(AddressWord::Static(net)) => vec![net.addr().into()],
        _ => Vec::new(),
    };
    let agent = Agent::open(arguments.paths, boot.as_ref());
    let mut router = Router::default();
    front::install_routes(&mut router, &agent);
    let services = Services::start(agent.clone(), boot.as_ref())?;
    routes::install(&mut router, &services);

    let front = Front::start(agent.clone(), router, &addresses)?;
    let local = agent.paths.local_socket();
    let _local = front
        .listen_local(&local)
        .map_err(|e| format!("the local socket {} cannot be made: {e}", local.display()))?;
    let mut listening = Vec::new();
    for address in &arguments.listen {
        let one = front.listen_on(*address).map_err(|e| format!("{address} cannot be listened on: {e}"))?;
        if let Some(address) = one.address() {
            log::info!("HTTPS is served on {address}");
        }
        listening.push(one);
    }
    if arguments.listen.is_empty() {
        front.follow_network()?;
    }
    log::info!("hostd serves {}", agent.hostname());
    let signal = ends.wait()?;
    log::info!("hostd ends after {signal}");
    let _ = std::fs::remove_file(&local);
    Ok(())
}

/// What init knows of this boot. Without init (in development, in tests) nothing.
fn boot(paths: &Paths) -> Option<Boot> {
    let asked =
        keelson_init_control::Client::connect_to(paths.init_socket()).and_then(|mut init| init.boot());
    asked
        .inspect_err(|e| {
            log::warn!("init cannot be asked about this boot; its words do not count: {}", chain(e))
        })
        .ok()
}
