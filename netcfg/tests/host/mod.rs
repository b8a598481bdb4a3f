//! A host that is only netd: the real binary in network and mount namespaces of its own, its NICs plugged into the lab's bridge.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_lab::net::LabNet;
use keelson_lab::process::{Process, bound, run, scratch};
use keelson_netcfg_control::{AdapterStatus, AddressOrigin, Client, Event, NetworkConfig, NetworkStatus};

/// Keeps the namespaces. The build machine has no /state, so netd keeps its configuration in /run.
const HOLD: &str = "mount -t tmpfs run /run && mount --make-rprivate / && echo ready && exec cat";

pub(crate) struct Host {
    pub(crate) net: LabNet,
    pub(crate) cables: Vec<String>,
    holder: Process,
    netd: Option<Process>,
    dir: tempfile::TempDir,
    lives: u32,
}

impl Host {
    /// Moves the calling thread into a lab network of its own and makes a host there; netd does not run yet.
    pub(crate) fn new(nics: u32) -> Result<Self> {
        let net = LabNet::enter()?;
        let dir = scratch("netd")?;
        let mut command = bound("unshare");
        command
            .args(["--net", "--mount", "--", "sh", "-c", HOLD])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut holder = Process::spawn(&mut command, "the host's namespaces")?;
        let mut ready = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(holder.stdout.take().context("no output")?),
            &mut ready,
        )?;
        if ready != "ready\n" {
            bail!("the host's namespaces could not be made");
        }
        let mut host = Self { net, cables: Vec::new(), holder, netd: None, dir, lives: 0 };
        for _ in 0..nics {
            host.add_nic()?;
        }
        Ok(host)
    }

    /// Plugs one more NIC in.
    pub(crate) fn add_nic(&mut self) -> Result<()> {
        let cable = self.net.cable(self.holder.pid(), &format!("vmnic{}", self.cables.len()))?;
        self.cables.push(cable);
        Ok(())
    }

    /// A command within the host.
    pub(crate) fn inside(&self, program: &str, args: &[&str]) -> Result<String> {
        let namespaces = self.namespaces();
        let mut all: Vec<&str> = namespaces.iter().map(String::as_str).collect();
        all.push(program);
        all.extend(args);
        run("nsenter", &all)
    }

    fn namespaces(&self) -> Vec<String> {
        let pid = self.holder.pid();
        vec![format!("--net=/proc/{pid}/ns/net"), format!("--mount=/proc/{pid}/ns/mnt"), "--".into()]
    }

    /// Starts a program within the host; what it prints goes to the file whose path is returned.
    pub(crate) fn spawn(&self, name: &str, program: &str, args: &[&str]) -> Result<(Process, PathBuf)> {
        let path = self.dir.path().join(format!("{name}.log"));
        let log = File::create(&path)?;
        let mut command = bound("nsenter");
        command.args(self.namespaces()).arg(program).args(args).stdout(log.try_clone()?).stderr(log);
        Ok((Process::spawn(&mut command, name)?, path))
    }

    /// Starts netd and waits until it answers.
    pub(crate) fn start(&mut self) -> Result<Client> {
        self.lives += 1;
        let (netd, _) = self.spawn(&format!("netd-{}", self.lives), env!("CARGO_BIN_EXE_netd"), &[])?;
        self.netd = Some(netd);
        self.client()
    }

    /// Kills netd, as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.netd.take());
    }

    /// The path of a file of the host, from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.pid()))
    }

    pub(crate) fn client(&self) -> Result<Client> {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let tried = Client::connect_to(self.path(keelson_netcfg_control::SOCKET))
                .and_then(|mut c| c.get().map(|_| c));
            match tried {
                Ok(client) => return Ok(client),
                Err(e) if Instant::now() > end => bail!("netd does not answer: {e}\n{}", self.log()),
                // The socket appears when netd binds it; there is nothing to wait on before.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// What netd logged in its present life.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("netd-{}.log", self.lives))).unwrap_or_default()
    }

    pub(crate) fn get(&self) -> Result<(NetworkConfig, NetworkStatus)> {
        Ok(self.client()?.get()?)
    }

    /// Waits for a status, on netd's own stream of them.
    pub(crate) fn wait(
        &self,
        what: &str,
        within: Duration,
        matches: impl Fn(&NetworkStatus) -> bool,
    ) -> Result<NetworkStatus> {
        let end = Instant::now() + within;
        let mut events = self.client()?.watch()?;
        let mut last = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            events.set_timeout(Some(left))?;
            match events.next() {
                Some(Ok(Event::Changed { status, .. })) if matches(&status) => return Ok(*status),
                Some(Ok(Event::Changed { status, .. })) => last = Some(status),
                _ => break,
            }
        }
        bail!("not within {within:?}: {what}\nlast status: {last:#?}\nnetd says:\n{}", self.log())
    }

    /// Waits until vmk0 has an address of this origin.
    pub(crate) fn wait_address(&self, origin: AddressOrigin, within: Duration) -> Result<AdapterStatus> {
        let status =
            self.wait(&format!("an address of origin {origin:?}"), within, |s| vmk0(s).origin == origin)?;
        Ok(vmk0(&status).clone())
    }
}

pub(crate) fn vmk0(status: &NetworkStatus) -> &AdapterStatus {
    status.vmkernel_adapters.iter().find(|a| a.name == "vmk0").expect("vmk0 is configured")
}

pub(crate) fn has_problem(status: &NetworkStatus, code: &str) -> bool {
    status.problems.iter().any(|p| p.code == code)
}

/// Whether something answers at an address: a refused connection is an answer.
pub(crate) fn reachable(address: Ipv4Addr) -> bool {
    match TcpStream::connect_timeout(&SocketAddr::from((address, 9)), Duration::from_secs(3)) {
        Ok(_) => true,
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}
