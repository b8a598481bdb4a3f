//! Runs the built monitor with the freestanding payload, and waits for what the guest prints.

#![allow(dead_code, unreachable_pub)] // each test file uses a part; a test has no outside
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on fails

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use keelson_vmm_control::Client;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// True when this machine has a KVM that can be used. Without it the test says that it is skipped, or fails when
/// `KEELSON_REQUIRE` asks for KVM.
pub fn kvm() -> bool {
    let missing = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => return true,
        Err(e) => format!("/dev/kvm cannot be opened: {e}"),
    };
    let required = std::env::var("KEELSON_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|tier| tier == "kvm"), "KEELSON_REQUIRE asks for kvm, but {missing}");
    eprintln!("SKIPPED: {missing}");
    false
}

/// The payload, built once in a test run.
pub fn payload() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/payload");
        // Test binaries run at the same time: each builds its own.
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("payload-{}.elf", std::process::id()));
        let flags = "-O2 -m64 -ffreestanding -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
                     -fno-asynchronous-unwind-tables -fcf-protection=none -nostdlib -static -Wall -Werror -Wl,--build-id=none";
        let built = Command::new("gcc")
            .args(flags.split_whitespace())
            .arg("-T")
            .arg(sources.join("link.ld"))
            .arg("-o")
            .arg(&out)
            .args([sources.join("entry.S"), sources.join("payload.c")])
            .status()
            .expect("gcc is needed to build the tests' payload");
        assert!(built.success(), "the payload does not build");
        out
    })
}

/// The monitor's command, to be given more words.
pub fn monitor() -> Command {
    Command::new(env!("CARGO_BIN_EXE_keelson-vmm"))
}

#[derive(Default)]
struct Heard {
    text: Mutex<(Vec<u8>, bool)>,
    more: Condvar,
}

/// Descriptors for a unit, by name.
pub type Fds = Vec<(&'static str, OwnedFd)>;

/// Hands descriptors to a `keelson-vmm unit` as init does: open across exec, named in the environment. `command` is the monitor's, or one
/// that executes it at last.
pub fn unit(mut command: Command, fds: &Fds) -> Command {
    let mut names = vec![];
    for (name, fd) in fds {
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        names.push(format!("{name}:{}", fd.as_raw_fd()));
    }
    command.arg("unit").env("KEELSON_FDS", names.join(",")).stdin(Stdio::null());
    command
}

/// A file without a name that holds these bytes.
pub fn file_with(bytes: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.into()
}

/// A running monitor. Dropping it kills it.
pub struct Vm {
    pub child: Child,
    heard: Arc<Heard>,
    log: Arc<Heard>,
    pub dir: tempfile::TempDir,
}

fn listen(mut from: impl Read + Send + 'static) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    let to = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        loop {
            let n = from.read(&mut bytes).unwrap_or(0);
            let mut text = to.text.lock().unwrap();
            text.0.extend_from_slice(&bytes[..n]);
            text.1 = n == 0;
            to.more.notify_all();
            if n == 0 {
                return;
            }
        }
    });
    heard
}

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap().0).into_owned()
    }

    /// All of it, to its end.
    fn all(&self) -> String {
        let mut text = self.text.lock().unwrap();
        while !text.1 {
            text = self.more.wait(text).unwrap();
        }
        String::from_utf8_lossy(&text.0).into_owned()
    }

    /// Waits until `found` finds something in the text.
    fn wait<T>(&self, what: &str, found: impl Fn(&str) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        let mut text = self.text.lock().unwrap();
        loop {
            let now = String::from_utf8_lossy(&text.0).into_owned();
            if let Some(found) = found(&now) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!text.1 && !left.is_zero(), "waited in vain for {what}; there is only: {now:?}");
            text = self.more.wait_timeout(text, left).unwrap().0;
        }
    }
}

impl Vm {
    /// Runs the payload with this command line, and further words for the monitor.
    pub fn run(cmdline: &str, words: &[&str]) -> Self {
        let mut command = monitor();
        command.args(["run", "--cmdline", cmdline, "--kernel"]).arg(payload());
        if !words.contains(&"--memory") {
            command.args(["--memory", "64"]);
        }
        command.args(words);
        Self::spawn(command)
    }

    /// Runs a command of the monitor, with a control socket.
    pub fn spawn(mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        command.arg("--control").arg(dir.path().join("control.sock"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let heard = listen(child.stdout.take().unwrap());
        let log = listen(child.stderr.take().unwrap());
        Self { child, heard, log, dir }
    }

    /// Waits until the guest has printed this.
    pub fn expect(&self, text: &str) {
        self.heard.wait(text, |heard| heard.contains(text).then_some(()));
    }

    /// Waits until the guest has printed a line `name number` and returns the last such number.
    pub fn number(&self, name: &str) -> u64 {
        self.heard.wait(name, |heard| last_number(heard, name))
    }

    /// What the guest has printed so far.
    pub fn printed(&self) -> String {
        self.heard.text()
    }

    /// All that the guest has printed, once the monitor has ended.
    pub fn all_printed(&self) -> String {
        self.heard.all()
    }

    /// All that the monitor has logged, once it has ended.
    pub fn all_logged(&self) -> String {
        self.log.all()
    }

    /// What the monitor has logged so far.
    pub fn logged(&self) -> String {
        self.log.text()
    }

    /// Types into the serial port.
    pub fn type_in(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// A client of the control socket, which exists once the machine is built.
    pub fn control(&self) -> Client {
        let path = self.dir.path().join("control.sock");
        let end = Instant::now() + PATIENCE;
        loop {
            match Client::connect(&path) {
                Ok(client) => return client,
                Err(e) => assert!(Instant::now() < end, "no control socket: {e:?}: {}", self.logged()),
            }
            std::thread::yield_now();
        }
    }

    /// Waits for the monitor's end and returns its exit code.
    pub fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < end, "the monitor does not end: {}", self.printed());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of the last complete line `name number`.
pub fn last_number(text: &str, name: &str) -> Option<u64> {
    let complete = text.rsplit_once('\n')?.0;
    complete.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
