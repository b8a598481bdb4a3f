//! What an operator does with a host: finds it, sets it up at its console, logs in, brings a guest and runs it.

use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_api::client::{Client, ClientError, Fingerprint, certificate_of};
use keelson_api::{DiskSpec, Login, NicSpec, ROOT, Task, TaskState, Vm, VmSpec};

use crate::console::{Console, keys};
use crate::guest;

/// Waits until a host answers over HTTPS; returns its certificate's fingerprint. A host far away gives no sign but its answers, so
/// this asks again and again.
pub fn wait_api(address: &str, within: Duration) -> Result<Fingerprint> {
    let end = Instant::now() + within;
    loop {
        match certificate_of(address) {
            Ok(fingerprint) => return Ok(fingerprint),
            Err(e) if Instant::now() > end => {
                return Err(e).with_context(|| format!("no answer from https://{address} within {within:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Waits until the host's screen shows its address, and returns it.
pub fn address_on_screen(console: &Console, within: Duration) -> Result<Ipv4Addr> {
    console.wait("the management address on the screen", within, |screen, _| {
        let (_, rest) = screen.split_once("https://")?;
        let text: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        text.parse().ok()
    })
}

/// Sets root's first password at the console: F2, the password twice.
pub fn first_password(console: &Console, password: &str, within: Duration) -> Result<()> {
    console.wait_screen("<F2>", within)?;
    console.type_keys(keys::F2)?;
    console.wait_screen("New Password", within)?;
    console.type_keys(&format!("{password}{}{password}{}", keys::TAB, keys::ENTER))?;
    console.wait_screen("<Esc> Log Out", within)
}

/// A static address, as a person types it into the console's form.
#[derive(Debug, Clone, Copy)]
pub struct StaticAddress<'a> {
    /// IPv4 Address.
    pub address: &'a str,
    /// Subnet Mask.
    pub mask: &'a str,
    /// Default Gateway.
    pub gateway: &'a str,
}

/// From the system menu with nothing moved yet: Configure Management Network, a static address, vMotion switched over, applied.
pub fn configure_network(
    console: &Console,
    fixed: StaticAddress<'_>,
    toggle_vmotion: bool,
    within: Duration,
) -> Result<()> {
    console.type_keys(&format!("{}{}", keys::DOWN, keys::ENTER))?;
    console.wait_screen("VMkernel Services", within)?;
    console.type_keys(keys::ENTER)?;
    console.wait_screen("Set a static address", within)?;
    // Ctrl-U empties a line that the form has filled in.
    let line = |text: &str| format!("{}\x15{text}", keys::DOWN);
    console.type_keys(&format!(
        "{}{}{}{}{}",
        keys::DOWN,
        keys::SPACE,
        line(fixed.address),
        line(fixed.mask),
        line(fixed.gateway)
    ))?;
    console.wait_screen(fixed.gateway, within)?;
    console.type_keys(keys::ENTER)?;
    console.wait("the menu again", within, |screen, _| {
        (!screen.contains("Set a static address")).then_some(())
    })?;
    if toggle_vmotion {
        console.type_keys(&format!("{0}{0}{1}", keys::DOWN, keys::ENTER))?;
        console.wait_screen("vMotion (live migration)", within)?;
        console.type_keys(&format!("{}{}", keys::SPACE, keys::ENTER))?;
        console.wait("the menu again", within, |screen, _| {
            (!screen.contains("vMotion (live migration)")).then_some(())
        })?;
    }
    console.type_keys(keys::ESC)?;
    console.wait_screen("Apply changes and restart management network?", within)?;
    console.type_keys("y")?;
    console.wait_screen("<Esc> Log Out", within)
}

/// Logs in as root.
pub fn log_in(address: &str, pin: Fingerprint, password: &str) -> Result<Client> {
    let client = Client::https(address, pin)?;
    let session = client.login(&Login { username: ROOT.into(), password: password.into() })?;
    Ok(client.with_token(session.token))
}

/// Logs in as root to a host whose agent may be away for a moment: a refusal counts, a broken connection is tried again.
pub fn log_in_again(address: &str, pin: Fingerprint, password: &str, within: Duration) -> Result<Client> {
    let end = Instant::now() + within;
    loop {
        match log_in(address, pin, password) {
            Err(e)
                if Instant::now() < end
                    && e.downcast_ref::<ClientError>().is_some_and(|e| e.fault().is_none()) =>
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome,
        }
    }
}

/// Waits for a task's end; its failure is an error.
pub fn finish(client: &Client, task: Task) -> Result<Task> {
    let task = client.task_end(task, |_| ())?;
    match (task.state, &task.error) {
        (TaskState::Success, _) => Ok(task),
        (_, Some(problem)) => bail!("the task `{}` failed: {problem}", task.name),
        (_, None) => bail!("the task `{}` failed: {}", task.name, task.message),
    }
}

/// Uploads the lab's guest (kernel and initramfs) to the host's datastore; `progress` gets bytes done and bytes in all.
pub fn upload_guest(client: &Client, mut progress: impl FnMut(u64, u64)) -> Result<()> {
    let scratch = crate::process::scratch("guest")?;
    let initramfs = scratch.path().join("initramfs.cpio");
    guest::initramfs(&initramfs)?;
    let files = [("guest/vmlinuz", guest::kernel()?), ("guest/initramfs.cpio", initramfs)];
    let sizes =
        files.iter().map(|(_, path)| Ok(std::fs::metadata(path)?.len())).collect::<Result<Vec<u64>>>()?;
    let (total, mut before) = (sizes.iter().sum(), 0);
    for ((name, path), size) in files.iter().zip(&sizes) {
        let mut file = std::fs::File::open(path)?;
        client.upload("datastore1", name, &mut file, *size, &mut |done| progress(before + done, total))?;
        before += size;
    }
    Ok(())
}

/// What the lab's guest is made of: one vCPU, 192 MiB, a new disk of 16 MiB, an adapter on "VM Network".
pub fn guest_spec(name: &str, address: &str) -> VmSpec {
    VmSpec {
        name: name.into(),
        datastore: None,
        vcpus: 1,
        memory_mib: 192,
        cpu: keelson_api::VmCpu::default(),
        kernel: "[datastore1] guest/vmlinuz".into(),
        initramfs: Some("[datastore1] guest/initramfs.cpio".into()),
        cmdline: format!("console=ttyS0 quiet guest.address={address}"),
        disks: vec![DiskSpec { size_mib: Some(16), ..DiskSpec::default() }],
        nics: vec![NicSpec { port_group: "VM Network".into(), mac: None }],
    }
}

/// A guest's serial console, live, as text.
#[derive(Debug)]
pub struct GuestConsole {
    chunks: Receiver<Vec<u8>>,
    text: String,
}

impl GuestConsole {
    /// Opens the console stream of a VM; `echo` sees every piece.
    pub fn open(client: &Client, vm: &Vm, mut echo: impl FnMut(&[u8]) + Send + 'static) -> Result<Self> {
        let mut stream = client.console_stream(vm.id)?;
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            while let Ok(n) = stream.read(&mut buffer) {
                let chunk = buffer.get(..n).unwrap_or_default().to_vec();
                echo(&chunk);
                if n == 0 || sender.send(chunk).is_err() {
                    return;
                }
            }
        });
        Ok(Self { chunks, text: String::new() })
    }

    /// Everything printed so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Waits until the guest has printed `what`; returns all that it printed until then.
    pub fn wait(&mut self, what: &str, within: Duration) -> Result<&str> {
        let end = Instant::now() + within;
        while !self.text.contains(what) {
            match self.chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.text.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest did not print `{what}` within {within:?}. It printed:\n{}", self.text)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest's console ended before it printed `{what}`. It printed:\n{}", self.text)
                }
            }
        }
        Ok(&self.text)
    }

    /// Waits until the stream ends, which it does when the VM is off.
    pub fn ended(&mut self, within: Duration) -> Result<()> {
        let end = Instant::now() + within;
        loop {
            match self.chunks.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.text.push_str(&String::from_utf8_lossy(&chunk)),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest's console has not ended within {within:?}. It printed:\n{}", self.text)
                }
            }
        }
    }

    /// The guest's address, once it has printed it.
    pub fn address(&mut self, within: Duration) -> Result<Ipv4Addr> {
        self.wait(guest::READY, within)?;
        let line = self.text.lines().find_map(|l| l.trim().strip_prefix("guest: address "));
        let address = line.and_then(|l| l.split('/').next()).context("the guest printed no address")?;
        address.parse().with_context(|| format!("the guest has no address: `{address}`"))
    }
}

/// Fetches the guest's web page from the lab's side: through the host's uplink and its virtual switch.
pub fn fetch_page(address: Ipv4Addr, within: Duration) -> Result<String> {
    let end = Instant::now() + within;
    loop {
        match page(address) {
            Ok(text) => return Ok(text),
            Err(e) if Instant::now() > end => {
                return Err(e).with_context(|| format!("http://{address}/ did not answer within {within:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn page(address: Ipv4Addr) -> Result<String> {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect_timeout(&(address, 80).into(), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(body.trim().to_owned())
}
