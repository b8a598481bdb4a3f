//! A light host: the shipped init, netd, hostd and dcui in namespaces of this machine, in about a second. Same binaries, same
//! sockets, same API; this machine's kernel in place of the appliance's.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_api::client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::artefacts;
use crate::console::Console;
use crate::net::LabNet;
use crate::process::{Process, bound, scratch};

/// What a light host is made of.
#[derive(Debug, Clone, Default)]
pub struct LightOptions {
    /// Host words, each with its prefix.
    pub words: Vec<String>,
    /// How many NICs it has; each is plugged into `lab0`.
    pub nics: u32,
    /// Its state directory; a new one, gone with the host, when `None`.
    pub state: Option<PathBuf>,
    /// Without a state partition: it runs from RAM.
    pub ephemeral: bool,
    /// Without `/dev/kvm`, as on a server whose firmware has virtualisation switched off.
    pub no_kvm: bool,
}

/// A running light host.
#[derive(Debug)]
pub struct LightHost {
    process: Process,
    init: i32,
    /// Its console (the serial line).
    pub console: Console,
    /// The lab's ends of its NICs' cables.
    pub cables: Vec<String>,
    /// When it was started.
    pub power_on: Instant,
    root: PathBuf,
    _directory: tempfile::TempDir,
}

/// Runs as PID 1 of the new namespaces before init does: a /dev with the console line, then init in its own root.
const LAUNCH: &str = r#"set -eu
root=$1; tty=$2; shift 2
mount --bind "$root" "$root"
mount -t tmpfs -o mode=0755 dev "$root/dev"
mknod -m 0666 "$root/dev/null" c 1 3
# init makes the other nodes. One that leads nowhere stands for a server whose virtualisation is switched off.
[ -z "${NO_KVM:-}" ] || mknod -m 0600 "$root/dev/kvm" c 0 0
: > "$root/dev/ttyS0"
mount --bind "$tty" "$root/dev/ttyS0"
[ -z "${STATE:-}" ] || mount --bind "$STATE" "$root/state"
echo ready
read -r _
exec env -i PATH=/bin:/sbin chroot "$root" /init --light "$@"
"#;

impl LightHost {
    /// Starts one.
    pub fn start(net: &LabNet, options: &LightOptions) -> Result<Self> {
        let directory = scratch("light")?;
        let root = directory.path().join("root");
        for dir in ["bin", "sbin", "dev", "proc", "sys", "run", "etc", "tmp"] {
            std::fs::create_dir_all(root.join(dir))?;
        }
        if !options.ephemeral {
            std::fs::create_dir_all(root.join("state"))?;
        }
        place(&artefacts::binary("init")?, &root.join("init"))?;
        for name in ["netd", "hostd", "dcui", "keelson-vmm"] {
            place(&artefacts::binary(name)?, &root.join("bin").join(name))?;
        }
        let state = match &options.state {
            Some(state) => state.clone(),
            None => {
                let state = directory.path().join("state");
                std::fs::create_dir_all(&state)?;
                state
            }
        };
        let pty =
            nix::pty::openpty(&nix::pty::Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 }, None)?;
        let tty =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave)))?;
        let mut command = bound("unshare");
        command.args([
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--",
            "sh",
            "-c",
            LAUNCH,
            "launch",
        ]);
        command.arg(&root).arg(&tty).args(&options.words);
        if !options.ephemeral {
            command.env("STATE", &state);
        }
        if options.no_kvm {
            command.env("NO_KVM", "1");
        }
        let log = File::create(directory.path().join("init.log"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let power_on = Instant::now();
        let mut process = Process::spawn(&mut command, "light host")?;
        let mut ready = String::new();
        let mut output = BufReader::new(process.stdout.take().context("no output of the launcher")?);
        output.read_line(&mut ready)?;
        if ready.trim() != "ready" {
            let log = std::fs::read_to_string(directory.path().join("init.log")).unwrap_or_default();
            bail!("a light host could not be prepared: {}", log.trim());
        }
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid()))?;
        let init: i32 = children.split_whitespace().next().context("the launcher has no child")?.parse()?;
        let mut cables = Vec::new();
        for n in 0..options.nics {
            cables.push(net.cable(init, &format!("vmnic{n}"))?);
        }
        process.stdin.take().context("no input of the launcher")?.write_all(b"go\n")?;
        let master = File::from(pty.master);
        // The slave stays open in the console's reader, so that a restart of dcui is no hang-up of the line.
        let console =
            Console::new(Line { master: master.try_clone()?, _slave: File::from(pty.slave) }, master, None);
        // What is left of the launcher's standard output is init's.
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(Self { process, init, console, cables, power_on, root, _directory: directory })
    }

    /// A client on the host's local socket: root, without a password.
    pub fn local(&self) -> Client {
        Client::local_at(self.inside(keelson_api::LOCAL_SOCKET))
    }

    /// Waits until the host agent answers on its local socket.
    pub fn wait_agent(&self, within: Duration) -> Result<Client> {
        let end = Instant::now() + within;
        loop {
            // The socket appears when hostd binds it; init tells only that hostd runs.
            match self.local().health() {
                Ok(_) => return Ok(self.local()),
                Err(e) if Instant::now() > end => {
                    return Err(e).with_context(|| {
                        format!("hostd does not answer within {within:?}; init says:\n{}", self.init_log())
                    });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The directory of a path inside the host, through its own mounts: `inside("/run/keelson/hostd.sock")`.
    pub fn inside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// The pids, in this machine's numbers, of the host's processes with that name (`hostd`, `netd`, `dcui`, `keelson-vmm`).
    pub fn pids(&self, name: &str) -> Result<Vec<i32>> {
        let namespace = std::fs::read_link(format!("/proc/{}/ns/pid", self.init))?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // A VM has a PID namespace of its own below the host's, so its name alone counts when its parent is the host's init.
            let inside = std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|ns| ns == namespace)
                || self.is_child(pid);
            if comm.trim() == name && inside {
                found.push(pid);
            }
        }
        Ok(found)
    }

    fn is_child(&self, pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|p| p.trim() == self.init.to_string()))
    }

    /// Kills every process of that name (SIGKILL); an error when there is none.
    pub fn kill_unit(&self, name: &str) -> Result<()> {
        let pids = self.pids(name)?;
        if pids.is_empty() {
            bail!("the light host runs no {name}");
        }
        for pid in pids {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        }
        Ok(())
    }

    /// What init printed on its own standard error.
    pub fn init_log(&self) -> String {
        std::fs::read_to_string(self.root.with_file_name("init.log")).unwrap_or_default()
    }

    /// Waits until the host has shut itself down.
    pub fn wait_off(&self, within: Duration) -> Result<std::process::ExitStatus> {
        self.process.wait(within)
    }

    /// Ends the host at once, as a power cut would.
    pub fn power_cut(&self) {
        self.process.kill();
    }

    /// Asks init for an orderly shutdown.
    pub fn shut_down(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.init), Signal::SIGTERM)?)
    }
}

struct Line {
    master: File,
    _slave: File,
}

impl std::io::Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        Ok(nix::unistd::read(self.master.as_fd(), buffer)?)
    }
}

fn place(from: &Path, to: &Path) -> Result<()> {
    // A hard link where both are on one file system; a copy costs a second for all of them.
    if std::fs::hard_link(from, to).is_err() {
        std::fs::copy(from, to).with_context(|| format!("{} could not be copied", from.display()))?;
    }
    Ok(())
}
