//! A host agent in a directory of its own, with the daemons around it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_api::{Task, TaskState, Vm};
use keelson_init_control::{Boot, Problem, STEP_MACHINES, StateVolume, Step, WordError};
use serde_json::{Value, json};

use crate::fake_init::FakeInit;
use crate::fake_netd::FakeNetd;
use crate::http::{self, Answer};

pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) hostd: Option<Child>,
    log: Arc<Mutex<Vec<String>>>,
}

/// A host with all its daemons.
pub(crate) struct Whole {
    pub(crate) host: Host,
    pub(crate) init: Arc<FakeInit>,
    pub(crate) netd: Arc<FakeNetd>,
}

impl std::ops::Deref for Whole {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}

pub(crate) fn boot() -> Boot {
    Boot {
        version: "test".into(),
        boot_id: "11111111-1111-4111-8111-111111111111".into(),
        light: true,
        word_errors: vec![WordError {
            origin: "kernel command line".into(),
            word: "colour=blue".into(),
            problem: "there is no such word".into(),
        }],
        timeline: vec![
            Step { name: "units".into(), at_ms: 42 },
            Step { name: STEP_MACHINES.into(), at_ms: 43 },
        ],
        problems: vec![Problem {
            code: "driver-failed".into(),
            message: "a driver failed".into(),
            remedy: "look".into(),
        }],
        state: Some(StateVolume { device: "/dev/vda2".into(), bytes: 1 << 30, grown: false }),
        ..Boot::default()
    }
}

impl Whole {
    pub(crate) fn start() -> Self {
        Self::start_on(boot())
    }

    fn start_on(boot: Boot) -> Self {
        let mut host = Host::new();
        let init = FakeInit::start(&host.run(), boot);
        let netd = FakeNetd::start(&host.run());
        host.start_hostd();
        Self { host, init, netd }
    }

    /// As [`Whole::start`], with kernels uploaded; `None`, said aloud, where no VM can be powered on.
    pub(crate) fn start_with_kvm() -> Option<Self> {
        Self::start_with_kvm_on(boot())
    }

    /// The same on a host that was booted so.
    pub(crate) fn start_with_kvm_on(boot: Boot) -> Option<Self> {
        if std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            skip("kvm", "/dev/kvm cannot be opened");
            return None;
        }
        let whole = Self::start_on(boot);
        whole.put("vmlinuz", &bzimage());
        whole.put("isos/initrd", b"an initramfs");
        Some(whole)
    }
}

/// Says that a test was not run, and fails where it had to be.
pub(crate) fn skip(tier: &str, why: &str) {
    let required = std::env::var("KEELSON_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|t| t == tier), "{tier} is required, and {why}");
    eprintln!("SKIPPED: {why}");
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["state", "datastore", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, hostd: None, log: Arc::default() }
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn datastore(&self) -> PathBuf {
        self.dir.path().join("datastore")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run().join("hostd.sock")
    }

    /// Where HTTPS is served.
    pub(crate) fn address(&self) -> String {
        let log = self.log.lock().unwrap();
        log.iter().find_map(|l| l.split("HTTPS is served on ").nth(1)).unwrap().trim().to_owned()
    }

    pub(crate) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let at = |name: &str| self.dir.path().join(name).into_os_string();
        vec![
            "--state".into(),
            at("state"),
            "--datastore".into(),
            at("datastore"),
            "--run".into(),
            at("run"),
            "--listen".into(),
            "127.0.0.1:0".into(),
        ]
    }

    pub(crate) fn start_hostd(&mut self) {
        let command = Command::new(env!("CARGO_BIN_EXE_hostd"));
        self.start_as(command);
    }

    /// Starts the host agent by `command`, to which its arguments are added; returns when it serves.
    pub(crate) fn start_as(&mut self, mut command: Command) {
        let mut child =
            command.args(self.arguments()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        self.hostd = Some(child);
        let (serves, ready): (_, Receiver<()>) = channel();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("hostd serves") {
                    let _ = serves.send(());
                }
                log.lock().unwrap().push(line);
            }
        });
        if ready.recv_timeout(Duration::from_secs(20)).is_err() {
            panic!("the host agent does not serve:\n{}", self.log.lock().unwrap().join("\n"));
        }
    }

    /// SIGKILL, as the kernel's memory killer does it.
    pub(crate) fn kill_hostd(&mut self) {
        if let Some(mut child) = self.hostd.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        http::send(&self.socket(), "GET", path, b"")
    }

    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        http::send(&self.socket(), method, path, body.to_string().as_bytes())
    }

    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let answer =
            http::send(&self.socket(), "PUT", &format!("/datastores/datastore1/files/{path}"), bytes);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    }

    pub(crate) fn create(&self, spec: &Value) -> Vm {
        let answer = self.send("POST", "/vms", spec);
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        answer.read()
    }

    pub(crate) fn vm(&self, id: uuid::Uuid) -> Vm {
        self.get(&format!("/vms/{id}")).read()
    }

    pub(crate) fn power(&self, id: uuid::Uuid, action: &str) -> Answer {
        self.send("POST", &format!("/vms/{id}/power"), &json!({ "action": action }))
    }

    /// Waits for a task that an answer began.
    pub(crate) fn wait(&self, answer: &Answer) -> Task {
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        let task: Task = answer.read();
        let ended: Task = self.get(&format!("/tasks/{}?wait=30", task.id)).read();
        assert!(ended.state.ended(), "{ended:?}\n{}", self.log.lock().unwrap().join("\n"));
        ended
    }

    pub(crate) fn succeed(&self, answer: &Answer) -> Task {
        let task = self.wait(answer);
        assert_eq!(task.state, TaskState::Success, "{task:?}\n{}", self.log.lock().unwrap().join("\n"));
        task
    }

    /// Looks until it is so, at most ten seconds: for what no event tells from outside the host agent.
    pub(crate) fn until(&self, what: &str, so: impl Fn() -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !so() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Every file and directory of the datastore and of the host agent's documents about VMs, hidden ones too, with its size.
    pub(crate) fn everything(&self) -> Vec<String> {
        let mut all = Vec::new();
        walk(&self.datastore(), &mut all);
        let vms = std::fs::read_to_string(self.dir.path().join("state/vms.toml")).unwrap_or_default();
        all.push(vms);
        all.sort();
        all
    }
}

/// What lies under a directory. The host agent may take a file away while this looks, so what has gone in the meantime is
/// not there; anything else that cannot be read fails the test.
pub(crate) fn walk(dir: &Path, all: &mut Vec<String>) {
    let gone = |what: &Path, error: std::io::Error| {
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", what.display());
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return gone(dir, error),
    };
    for entry in entries {
        let path = entry.unwrap().path();
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) => {
                gone(&path, error);
                continue;
            }
        };
        all.push(format!("{} {}", path.display(), if meta.is_dir() { 0 } else { meta.len() }));
        if meta.is_dir() {
            walk(&path, all);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill_hostd();
        if std::thread::panicking() {
            eprintln!("--- hostd's log\n{}", self.log.lock().map(|l| l.join("\n")).unwrap_or_default());
        }
    }
}

/// The least that passes for a kernel.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut image = vec![0u8; 5 * 512 + 16];
    image[0x1f1] = 4;
    image[0x1f4] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image
}

pub(crate) fn spec(name: &str) -> Value {
    json!({ "name": name, "memory_mib": 64, "kernel": "[datastore1] vmlinuz" })
}
