//! News: threads that watch init and netd by their events, and ask hostd, which has none, every few seconds.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use keelson_api::client::Client;
use keelson_init_control::{Event as InitEvent, UnitState};
use keelson_netcfg_control::Event as NetdEvent;

use crate::Message;
use crate::facts::{Fact, Hardware};

/// How often hostd is asked while it answers.
const ASK: Duration = Duration::from_secs(5);
/// How soon a daemon that does not answer is tried again, when no event of init's says that it is back.
const AGAIN: Duration = Duration::from_secs(1);
/// How long hostd may take to show the host.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends a wait early.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(Arc<(Mutex<bool>, Condvar)>);

impl Bell {
    pub(crate) fn ring(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits for the bell or the time.
    fn wait(&self, at_most: Duration) {
        let guard = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .0
            .1
            .wait_timeout_while(guard, at_most, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// Where the daemons listen.
#[derive(Debug, Clone)]
pub(crate) struct Sockets {
    pub(crate) init: PathBuf,
    pub(crate) netd: PathBuf,
    pub(crate) hostd: PathBuf,
}

impl Sockets {
    /// Those in this directory.
    pub(crate) fn within(dir: &Path) -> Self {
        Self { init: dir.join("init.sock"), netd: dir.join("netd.sock"), hostd: dir.join("hostd.sock") }
    }
}

/// Starts the threads. Ring the bell to have hostd asked at once.
pub(crate) fn start(sockets: &Sockets, to: &Sender<Message>) -> std::io::Result<Bell> {
    let (hostd, netd) = (Bell::default(), Bell::default());
    let _ = to.send(Message::Fact(Fact::Hardware(hardware())));
    spawn("init", {
        let (path, to, bells) = (sockets.init.clone(), to.clone(), [hostd.clone(), netd.clone()]);
        move || watch_init(&path, &to, &bells)
    })?;
    spawn("netd", {
        let (path, to) = (sockets.netd.clone(), to.clone());
        move || watch_netd(&path, &to, &netd)
    })?;
    spawn("hostd", {
        let (path, to, bell) = (sockets.hostd.clone(), to.clone(), hostd.clone());
        move || ask_hostd(&path, &to, &bell)
    })?;
    Ok(hostd)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

fn hardware() -> Hardware {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let hostname = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    Hardware::parse(hostname, &read("/proc/cpuinfo"), &read("/proc/meminfo"))
}

/// Each of these runs until nobody listens any more.
fn watch_init(path: &Path, to: &Sender<Message>, bells: &[Bell]) {
    loop {
        let why = match init_session(path, to, bells) {
            Ok(why) => why,
            Err(e) => cause(&e),
        };
        if to.send(Message::Fact(Fact::Boot(Err(why)))).is_err() {
            return;
        }
        thread::park_timeout(AGAIN);
    }
}

fn init_session(
    path: &Path,
    to: &Sender<Message>,
    bells: &[Bell],
) -> Result<String, keelson_init_control::Error> {
    let boot = keelson_init_control::Client::connect_to(path)?.boot()?;
    let _ = to.send(Message::Fact(Fact::Boot(Ok(Box::new(boot)))));
    for event in keelson_init_control::Client::connect_to(path)?.watch()? {
        let fact = match event {
            Ok(InitEvent::Unit(unit)) => {
                if unit.state == UnitState::Running {
                    bells.iter().for_each(Bell::ring);
                }
                Fact::Unit(Box::new(unit))
            }
            Ok(InitEvent::PoweringDown(action)) => Fact::GoingDown(action),
            // The console shows no steps.
            Ok(InitEvent::Step(_)) => continue,
            Err(e) => return Ok(cause(&e)),
        };
        let _ = to.send(Message::Fact(fact));
    }
    Ok("it closed the connection".into())
}

fn watch_netd(path: &Path, to: &Sender<Message>, bell: &Bell) {
    loop {
        let why = match keelson_netcfg_control::Client::connect_to(path)
            .and_then(keelson_netcfg_control::Client::watch)
        {
            Err(e) => cause(&e),
            Ok(events) => {
                let mut why = "it closed the connection".to_owned();
                for event in events {
                    match event {
                        Ok(NetdEvent::Changed { config, status }) => {
                            let _ = to.send(Message::Fact(Fact::Network(Ok(Box::new((*config, *status))))));
                        }
                        Err(e) => why = cause(&e),
                    }
                }
                why
            }
        };
        if to.send(Message::Fact(Fact::Network(Err(why)))).is_err() {
            return;
        }
        bell.wait(AGAIN);
    }
}

fn ask_hostd(path: &Path, to: &Sender<Message>, bell: &Bell) {
    let client = Client::local_at(path).with_patience(PATIENCE);
    loop {
        let asked = Instant::now();
        let (fact, pause) = match client.get_host() {
            Ok(host) => (Fact::Host(Ok(Box::new(host))), ASK),
            Err(e) => match client.identity() {
                Ok(identity) => (Fact::Identity(Box::new(identity)), ASK),
                Err(_) => (Fact::Host(Err(cause(&e))), AGAIN.saturating_sub(asked.elapsed())),
            },
        };
        if to.send(Message::Fact(fact)).is_err() {
            return;
        }
        bell.wait(pause);
    }
}

/// The innermost cause, in a few words: the screen says itself what does not answer.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}
