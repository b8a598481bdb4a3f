//! A server's boot by the clock. Kernel and initramfs are handed to the emulator: firmware is not Keelson's.
//!
//! Two clocks are in play: the host's own, which starts with its kernel, and this machine's, on which an answer of the API is seen.
//! They are brought together by the steps of the boot that init prints on the serial line as they are done, each with its time on the
//! host's clock: a line that is stamped as it arrives says that the kernel started at most (stamp − its time) ago. Delays on the way
//! only ever make that later, so the earliest of all steps counts. The start of init on this machine's clock is then the start of the
//! kernel and `kernel`, the first step. The host's uptime, asked of the API, must agree, or the run fails.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use keelson_api::Host;
use keelson_api::client::Client;

use crate::artefacts;
use crate::dhcp_server::{DhcpServer, Habits};
use crate::guest::Archive;
use crate::net::LabNet;
use crate::operator;
use crate::process::run;
use crate::server::{BootFrom, PATIENCE, Server, ServerOptions};

const PASSWORD: &str = "Keelson-bench-1";

/// What one boot of a host showed.
#[derive(Debug)]
pub(super) struct Booted {
    /// From the kernel's start to init's.
    pub(super) kernel_to_init_ms: f64,
    /// From init's start to the first answer over HTTPS.
    pub(super) init_to_api_ms: f64,
    /// What is used of the kernel's memory (MemTotal - MemAvailable) with no VM.
    pub(super) memory_mib: f64,
    /// What the kernel never gives to anybody: the server's memory less MemTotal.
    pub(super) reserved_mib: f64,
}

/// What one boot of the kernel with a bare init showed.
#[derive(Debug)]
pub(super) struct Bare {
    /// From the kernel's start to init's.
    pub(super) kernel_to_init_ms: f64,
    /// What is used of the kernel's memory (MemTotal - MemAvailable).
    pub(super) memory_mib: f64,
}

/// The network that servers are booted in.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    net: &'a LabNet,
    dhcp: DhcpServer,
    bare: PathBuf,
    _scratch: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    pub(super) fn new(net: &'a LabNet) -> Result<Self> {
        // The kernel asks for an unknown neighbour once a second; the wait for a host that comes up must be finer.
        run("ip", &["ntable", "change", "name", "arp_cache", "dev", "lab0", "retrans", "20"])?;
        let dhcp = DhcpServer::start("lab0", Habits::default())?;
        let scratch = crate::process::scratch("bench")?;
        let bare = scratch.path().join("bare.cpio");
        let mut archive = Archive::default();
        archive.add("dev", 0o040_755, &[]);
        archive.add("proc", 0o040_755, &[]);
        archive.add("init", 0o100_755, &std::fs::read(artefacts::binary("keelson-bare-init")?)?);
        std::fs::write(&bare, archive.finish())?;
        Ok(Self { net, dhcp, bare, _scratch: scratch })
    }

    /// The same kernel, command line and server, with an initramfs that holds nothing but an init.
    pub(super) fn bare(&self) -> Result<Bare> {
        let options = ServerOptions::new("bench", BootFrom::Initramfs(self.bare.clone()));
        let server = Server::start(self.net, &options)?;
        let (us, used_kib) =
            server.console.wait("the bare init", PATIENCE, |_, printed| bare_line(printed))?;
        server.wait_off(PATIENCE)?;
        Ok(Bare { kernel_to_init_ms: f64::from(us) / 1000.0, memory_mib: f64::from(used_kib) / 1024.0 })
    }

    /// Boots a host for the first time, with an address by DHCP, until it answers; then looks at its memory.
    pub(super) fn boot(&self) -> Result<Booted> {
        self.dhcp.forget_leases();
        let options = ServerOptions::new("bench", BootFrom::Kernel);
        let server = Server::start(self.net, &options)?;
        let stamps = Stamps::default();
        server.console.taps().add(Box::new(stamps.clone()));
        let address = Habits::default().first;
        knock(SocketAddr::from((address, 443)), &server)?;
        let address = address.to_string();
        let pin = operator::wait_api(&address, PATIENCE)?;
        Client::https(&address, pin)?.health()?;
        let answered = Instant::now();

        let kernel_started = stamps.kernel_started().context("init printed no step of the boot")?;
        operator::first_password(&server.console, PASSWORD, PATIENCE)?;
        let client = operator::log_in(&address, pin, PASSWORD)?;
        let host = all_drivers(&client)?;
        let (_, kernel_ms) = steps(&host).next().context("the host has no record of its boot")?;
        let init_started = kernel_started + Duration::from_millis(kernel_ms);
        check_clock(&client, kernel_started)?;
        let timeline: Vec<String> = steps(&host).map(|(name, at)| format!("{name} {at}")).collect();
        eprintln!("  steps, in ms since the kernel started: {}", timeline.join(", "));
        if std::env::var_os("KEELSON_ECHO").is_some() {
            for line in client.logs(&Default::default())? {
                eprintln!("  {} {}: {}", line.time, line.source, line.text);
            }
        }
        Ok(Booted {
            kernel_to_init_ms: kernel_ms as f64,
            init_to_api_ms: answered.saturating_duration_since(init_started).as_secs_f64() * 1000.0,
            memory_mib: mib(host.memory.total_bytes.saturating_sub(host.memory.available_bytes)),
            reserved_mib: f64::from(options.memory_mib) - mib(host.memory.total_bytes),
        })
    }
}

/// Microseconds and used KiB in `bare init at 2871003 us with 1970000 kB of 2020000 kB`, once the line is whole.
fn bare_line(printed: &str) -> Option<(u32, u32)> {
    let (_, rest) = printed.split_once("bare init at ")?;
    let (us, rest) = rest.split_once(" us with ")?;
    let (available, rest) = rest.split_once(" kB of ")?;
    let (available, total): (u32, u32) = (available.parse().ok()?, rest.split_once(" kB")?.0.parse().ok()?);
    Some((us.parse().ok()?, total.checked_sub(available)?))
}

/// Waits until something listens there. A segment that got lost while the host came up would be sent again after a second only: each
/// knock is a new one.
fn knock(at: SocketAddr, server: &Server) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect_timeout(&at, Duration::from_millis(50)).is_err() {
        if Instant::now() > end {
            bail!("nothing listens at {at} within {PATIENCE:?}. The screen:\n{}", server.console.screen());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn steps(host: &Host) -> impl Iterator<Item = (&str, u64)> {
    host.boot_timeline.iter().map(|step| (step.name.as_str(), step.at_ms))
}

/// The host once its last driver is loaded: its memory changes no more by itself then.
fn all_drivers(client: &Client) -> Result<Host> {
    let end = Instant::now() + PATIENCE;
    loop {
        let host = client.get_host()?;
        if steps(&host).any(|(name, _)| name == "drivers") {
            return Ok(host);
        }
        ensure!(Instant::now() < end, "the host's drivers were not loaded within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The uptime that the host tells, in whole seconds, must lie between those of the question and of the answer.
fn check_clock(client: &Client, kernel_started: Instant) -> Result<()> {
    let asked = kernel_started.elapsed();
    let told = client.get_host()?.uptime_s;
    let answered = kernel_started.elapsed();
    let slack = Duration::from_millis(500);
    let (least, most) = (asked.saturating_sub(slack).as_secs(), (answered + slack).as_secs());
    ensure!(
        (least..=most).contains(&told),
        "the host says that it is up for {told} s; by its serial line it is {least} to {most} s"
    );
    Ok(())
}

/// Stamps each step of the boot as init prints it on the console.
#[derive(Debug, Clone, Default)]
struct Stamps(Arc<Mutex<(Vec<u8>, Option<Instant>)>>);

impl Stamps {
    /// The earliest that the steps allow.
    fn kernel_started(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Write for Stamps {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let now = Instant::now();
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if *byte != b'\n' {
                state.0.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut state.0);
            let started = step_time(&String::from_utf8_lossy(&line)).and_then(|at| now.checked_sub(at));
            state.1 = state.1.into_iter().chain(started).min();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The time in a line such as `keelson: mounts done at 2871 ms`.
fn step_time(line: &str) -> Option<Duration> {
    let (_, time) = line.trim_end().rsplit_once(" done at ")?;
    time.strip_suffix(" ms")?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_line_counts_once_it_is_whole() {
        let printed = "\r\nbare init at 2871003 us with 1970000 kB of 2020000 kB\r\n";
        assert_eq!(bare_line(printed), Some((2_871_003, 50_000)));
        assert_eq!(bare_line(&printed[..printed.len() - 5]), None);
    }

    #[test]
    fn the_kernel_started_before_every_step() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.kernel_started(), None);
        let before = Instant::now();
        // In pieces, as a serial line brings them; the second step was printed late.
        for piece in ["booting\r\nkeelson: mounts do", "ne at 40 ms\r\n", "keelson: storage done at 1 ms\r\n"]
        {
            stamps.write_all(piece.as_bytes()).unwrap();
        }
        let started = stamps.kernel_started().unwrap();
        assert!(started + Duration::from_millis(40) >= before);
        assert!(started + Duration::from_millis(39) <= Instant::now());
        assert_eq!(step_time("drivers done at noon"), None);
    }
}
