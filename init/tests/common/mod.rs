//! A light host with stand-ins for its units, in namespaces of its own. Needs root and util-linux's `unshare`.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use keelson_init_control::{Client, Event, UnitId, UnitStatus};

/// How long anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// One that runs.
pub struct LightHost {
    dir: tempfile::TempDir,
    child: Child,
    init: i32,
    output: Option<std::thread::JoinHandle<String>>,
}

/// Whether namespaces can be made here; a test that cannot run says so, and fails where the lab is required.
pub fn permitted() -> bool {
    let probe = Command::new("unshare")
        .args(["--fork", "--pid", "--mount", "--net", "--uts", "--ipc", "true"])
        .output();
    let why = match probe {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    let required = std::env::var("KEELSON_REQUIRE").is_ok_and(|v| v.split(',').any(|tier| tier == "lab"));
    assert!(!required, "KEELSON_REQUIRE names the lab, but no namespaces can be made: {why}");
    eprintln!("SKIPPED: no namespaces can be made here: {why}");
    false
}

/// A host to be.
pub struct Builder {
    dir: tempfile::TempDir,
}

impl Builder {
    /// A root directory with stand-ins for all units.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "proc", "sys", "run", "dev", "scripts", "state", "esp"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        // As the lab does: a /dev that is there already is not covered.
        let null = nix::sys::stat::makedev(1, 3);
        let kind = nix::sys::stat::SFlag::S_IFCHR;
        let _ = nix::sys::stat::mknod(
            &dir.path().join("dev/null"),
            kind,
            nix::sys::stat::Mode::from_bits_truncate(0o666),
            null,
        );
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let stand_in = dir.path().join("bin/stand-in");
        fs::copy(env!("CARGO_BIN_EXE_init-stand-in"), &stand_in).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_init"), dir.path().join("init")).unwrap();
        for name in ["netd", "hostd", "dcui", "keelson-vmm", "orphan"] {
            fs::hard_link(&stand_in, dir.path().join("bin").join(name)).unwrap();
        }
        Self { dir }
    }

    /// A file in the root directory.
    pub fn file(self, path: &str, text: &str) -> Self {
        fs::write(self.dir.path().join(path), text).unwrap();
        self
    }

    /// Takes a file or an empty directory away.
    pub fn without(self, path: &str) -> Self {
        let path = self.dir.path().join(path);
        fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        self
    }

    /// Starts it with these host words, and waits until it answers.
    pub fn start(self, words: &[&str]) -> LightHost {
        let mut command = Command::new("unshare");
        command.args(["--fork", "--pid", "--mount", "--net", "--uts", "--ipc", "--kill-child", "chroot"]);
        command.arg(self.dir.path()).args(["/init", "--light"]).args(words);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let began = Instant::now();
        let init = loop {
            let children =
                fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
            if let Some(pid) = children.split_whitespace().next().and_then(|p| p.parse().ok())
                // The file is there a moment before it is listened on.
                && Client::connect_to(socket(pid)).is_ok()
            {
                break pid;
            }
            assert!(began.elapsed() < PATIENCE, "init does not listen: {:?}", child.try_wait());
            std::thread::sleep(Duration::from_millis(2));
        };
        LightHost { dir: self.dir, child, init, output: Some(output) }
    }
}

fn socket(init: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{init}/root/run/keelson/init.sock"))
}

impl LightHost {
    /// A client of its init.
    pub fn client(&self) -> Client {
        Client::connect_to(socket(self.init)).unwrap()
    }

    /// A path of the host, seen from outside.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of its init, as this machine counts.
    pub fn init_pid(&self) -> i32 {
        self.init
    }

    /// Waits until a unit's state is as wanted, by init's events.
    pub fn wait(&self, unit: UnitId, mut wanted: impl FnMut(&UnitStatus) -> bool) -> UnitStatus {
        let events = self.client().watch().unwrap();
        events.set_timeout(Some(PATIENCE)).unwrap();
        for event in events {
            if let Event::Unit(status) = event.unwrap()
                && status.id == unit
                && wanted(&status)
            {
                return status;
            }
        }
        panic!("init's events ended")
    }

    /// Waits until a line with `text` is in the log of `source`, and returns it.
    pub fn wait_log(&self, source: &str, text: &str) -> String {
        let began = Instant::now();
        let (mut client, mut since) = (self.client(), 0);
        loop {
            let lines = client.logs(since, 10_000, Some(source.into())).unwrap();
            if let Some(line) = lines.iter().find(|l| l.text.contains(text)) {
                return line.text.clone();
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no `{text}` in the log of {source}; its last lines: {lines:#?}"
            );
            match lines.last() {
                Some(last) => since = last.seq + 1,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Waits for the end, and returns how it ended with all that init wrote.
    pub fn end(mut self) -> (ExitStatus, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < PATIENCE, "the host does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        (status, self.output.take().unwrap().join().unwrap())
    }
}

impl Drop for LightHost {
    fn drop(&mut self) {
        // Its init goes with it (--kill-child), and with that everything in the namespace.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking()
            && let Some(output) = self.output.take()
        {
            eprintln!("init wrote:\n{}", output.join().unwrap_or_default());
        }
    }
}
