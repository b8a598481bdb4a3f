//! A stand-in for netd, hostd, dcui and keelson-vmm in the tests of init: it does what a script says, line by line.
//!
//! A daemon's script is the file `/scripts/<unit>` (with `-` for `/`), a VM's is the descriptor `script`. When the script is over
//! it waits for SIGTERM and exits with code 0.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use keelson_init_control::fds;
use nix::sys::signal::{SigSet, Signal};

fn main() {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    let _ = term.thread_block();
    let unit = std::env::var("KEELSON_UNIT").unwrap_or_default();
    let mut given = match fds::take() {
        Ok(given) => given,
        Err(e) => {
            eprintln!("<3>{e}");
            std::process::exit(99)
        }
    };
    let mut script = String::new();
    let opened = match given.remove_optional("script") {
        Some(fd) => {
            let mut file = File::from(fd);
            let _ = std::io::Seek::rewind(&mut file);
            Ok(file)
        }
        None => File::open(format!("/scripts/{}", unit.replace('/', "-"))),
    };
    if let Ok(mut file) = opened {
        let _ = file.read_to_string(&mut script);
    }
    for line in script.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = rest.parse::<u64>().unwrap_or(0);
        match word {
            "log" => eprintln!("{rest}"),
            "exit" => std::process::exit(i32::try_from(number).unwrap_or(98)),
            "signal" => {
                let signal = i32::try_from(number).ok().and_then(|n| Signal::try_from(n).ok());
                let _ = nix::sys::signal::raise(signal.unwrap_or(Signal::SIGKILL));
            }
            // Work that takes its time; nothing waits for it to be over but the unit itself.
            "work" => std::thread::sleep(Duration::from_millis(number)),
            "deaf" => loop {
                std::thread::park();
            },
            "orphan" => orphan(),
            "report" => report(&given),
            "answer" => answer(&mut given),
            _ => eprintln!("<3>no such word: {line}"),
        }
    }
    let _ = term.wait();
    std::process::exit(0)
}

/// Leaves a grandchild whose parent is gone; it ends by itself soon.
fn orphan() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("grandchild") {
        return;
    }
    let child = std::process::Command::new("/bin/orphan").stdin(std::process::Stdio::null()).spawn();
    eprintln!("orphan {}", child.map(|c| c.id()).unwrap_or(0));
}

fn status(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|l| l.strip_prefix(key))
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(",")
}

fn report(given: &fds::Given) {
    let names = given.names().collect::<Vec<_>>().join(",");
    let files: Vec<String> = std::fs::read_dir("/")
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let links = nix::ifaddrs::getifaddrs().map(Iterator::count).unwrap_or(0);
    eprintln!(
        "report uid={} pid={} fds={names} files={} links={links} caps={} bound={} nnp={}",
        nix::unistd::getuid(),
        std::process::id(),
        files.len(),
        status("CapEff:"),
        status("CapBnd:"),
        status("NoNewPrivs:"),
    );
}

/// Accepts one connection on `control` and sends a line.
fn answer(given: &mut fds::Given) {
    let Ok(fd) = given.remove("control") else { return };
    let _ = fd.as_fd();
    let listener = std::os::unix::net::UnixListener::from(fd);
    if let Ok((mut stream, _)) = listener.accept() {
        let _ = std::io::Write::write_all(&mut stream, b"here\n");
    }
}
