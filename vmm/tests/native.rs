//! The monitor on this machine's KVM, with a freestanding payload as the guest.

#![allow(clippy::unwrap_used)] // also in what helps tests: one that cannot go on fails

mod support;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use keelson_vmm_control::{Event, ExitCode, MachineState, Request};
use support::{Vm, file_with, kvm, last_number, monitor, unit};

const OFF: i32 = ExitCode::GuestOff as i32;
const FAULT: i32 = ExitCode::Fault as i32;
const BAD: i32 = ExitCode::BadConfig as i32;
const KILLED: i32 = ExitCode::Killed as i32;

#[test]
fn a_payload_boots_echoes_and_switches_off() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("rsdp echo", &[]);
    vm.expect("rsdp RSD PTR ");
    vm.expect("ready\n");
    let text = "abdegh".repeat(200);
    vm.type_in(&text);
    vm.expect(&text);
    vm.type_in("q");
    assert_eq!(vm.exit_code(), OFF, "{}", vm.logged());
}

#[test]
fn an_initramfs_reaches_the_guest_whole() {
    if !kvm() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let text: String = (0..1000).map(|n| format!("{n:04} ")).collect();
    std::fs::write(file.path(), &text).unwrap();
    let mut vm = Vm::run("module", &["--initrd", file.path().to_str().unwrap()]);
    vm.expect(&format!("module {text}\n"));
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn memory_holds_what_the_guest_writes_and_is_counted() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("dirty=96 echo", &["--memory", "128"]);
    vm.expect("dirtied 96\n");
    let status = vm.control().status().unwrap();
    assert!((96..128).contains(&status.memory_touched_mib), "{status:?}");
    assert_eq!(
        (status.state, status.vcpus, status.memory_mib, status.resets),
        (MachineState::Running, 1, 128, 0)
    );
    vm.expect("ready\n");
    vm.type_in("q");
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn an_untouched_machine_costs_little_memory() {
    if !kvm() {
        return;
    }
    let vm = Vm::run("echo", &["--memory", "4096"]);
    vm.expect("ready\n");
    assert!(vm.control().status().unwrap().memory_touched_mib < 4);
}

#[test]
fn a_paused_guest_does_not_run_and_goes_on_where_it_was() {
    if !kvm() {
        return;
    }
    let vm = Vm::run("beat", &[]);
    vm.number("beat");
    let mut control = vm.control();
    for _ in 0..20 {
        control.tell(&Request::Pause).unwrap();
        assert_eq!(control.status().unwrap().state, MachineState::Paused);
        // What was printed before the pause may still be on its way; after that nothing may come.
        std::thread::sleep(Duration::from_millis(30));
        let before = last_number(&vm.printed(), "beat");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(last_number(&vm.printed(), "beat"), before);
        control.tell(&Request::Pause).unwrap();
        control.tell(&Request::Resume).unwrap();
        vm.expect(&format!("beat {}\n", before.unwrap_or(0) + 2));
    }
    let printed = vm.printed();
    let beats: Vec<u64> = printed.lines().filter_map(|l| l.strip_prefix("beat ")?.parse().ok()).collect();
    assert!(
        beats.windows(2).all(|w| w[1] == w[0] + 1 || w[1].to_string().len() < w[0].to_string().len()),
        "{printed}"
    );
}

#[test]
fn every_way_to_reset_starts_anew_with_memory_kept() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("echo", &[]);
    let mut events = vm.control().watch().unwrap();
    assert_eq!(events.next().unwrap().unwrap(), Event::State(MachineState::Running));
    let mut boots = 1;
    // The reset register, the keyboard controller, port 0xcf9, a triple fault, and the control socket.
    for way in ["r", "k", "c", "f", ""] {
        vm.expect(&format!("boot {boots}\nready\n"));
        if way.is_empty() {
            vm.control().tell(&Request::Reset).unwrap();
        } else {
            vm.type_in(way);
        }
        assert_eq!(events.next().unwrap().unwrap(), Event::Reset, "by {way:?}");
        boots += 1;
    }
    vm.expect(&format!("boot {boots}\nready\n"));
    assert_eq!(vm.control().status().unwrap().resets, boots - 1);
    vm.type_in("q");
    assert_eq!(events.next().unwrap().unwrap(), Event::GuestPowerOff);
    assert_eq!(events.next().unwrap().unwrap(), Event::State(MachineState::Off));
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn a_machine_that_is_reset_while_paused_stays_paused() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("echo", &[]);
    vm.expect("boot 1\nready\n");
    let mut control = vm.control();
    control.tell(&Request::Pause).unwrap();
    control.tell(&Request::Reset).unwrap();
    assert_eq!(control.status().unwrap().state, MachineState::Paused);
    assert!(!vm.printed().contains("boot 2"));
    control.tell(&Request::Resume).unwrap();
    vm.expect("boot 2\nready\n");
    vm.type_in("q");
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn a_guest_that_only_crashes_is_given_up() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("crash", &[]);
    assert_eq!(vm.exit_code(), FAULT);
    assert!(vm.logged().contains("triple fault"), "{}", vm.logged());
    assert!(vm.printed().contains("boot 5"));
}

#[test]
fn kill_is_answered_and_ends_the_machine_also_when_paused() {
    if !kvm() {
        return;
    }
    for paused in [false, true] {
        let mut vm = Vm::run("echo", &[]);
        vm.expect("ready\n");
        let mut control = vm.control();
        if paused {
            control.tell(&Request::Pause).unwrap();
        }
        control.tell(&Request::Kill).unwrap();
        assert_eq!(vm.exit_code(), KILLED);
    }
}

#[test]
fn the_power_button_is_seen_by_the_guest() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("button", &[]);
    vm.expect("waiting\n");
    vm.control().tell(&Request::PowerButton).unwrap();
    vm.expect("pressed\n");
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn sigterm_presses_the_power_button_and_sigint_kills() {
    if !kvm() {
        return;
    }
    let signal = |vm: &Vm, name: &str| {
        let sent =
            std::process::Command::new("kill").args([name, &vm.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    let mut vm = Vm::run("button", &[]);
    vm.expect("waiting\n");
    signal(&vm, "-TERM");
    vm.expect("pressed\n");
    assert_eq!(vm.exit_code(), OFF);
    let mut vm = Vm::run("button", &[]);
    vm.expect("waiting\n");
    signal(&vm, "-INT");
    assert_eq!(vm.exit_code(), KILLED);
}

#[test]
fn several_vcpus_start_by_init_and_sipi() {
    if !kvm() {
        return;
    }
    for cpus in ["2", "64"] {
        let mut vm = Vm::run(&format!("smp={cpus}"), &["--cpus", cpus]);
        assert_eq!(vm.number("cpus").to_string(), cpus);
        assert_eq!(vm.exit_code(), OFF);
    }
}

#[test]
fn console_clients_and_the_log_get_the_output_and_clients_can_type() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("console.sock"), dir.path().join("console.log"));
    let words = ["--console", socket.to_str().unwrap(), "--console-log", log.to_str().unwrap()];
    let mut vm = Vm::run("spam=500 echo", &words);
    vm.expect("ready\n");
    // One that never reads must not matter.
    let _lazy = UnixStream::connect(&socket).unwrap();
    let mut client = UnixStream::connect(&socket).unwrap();
    let mut text = String::new();
    std::io::Write::write_all(&mut client, b"hello q").unwrap();
    std::io::Read::read_to_string(&mut client, &mut text).unwrap();
    assert_eq!(vm.exit_code(), OFF);
    assert!(text.starts_with("boot 1\nspam 500\n") && text.ends_with("ready\nhello "), "{text}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), text);
}

/// The monitor's exit code and what it logs, for words with which no machine starts.
fn refused(words: &[&str]) -> (i32, String) {
    let out = monitor().arg("run").args(words).stdin(std::process::Stdio::null()).output().unwrap();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn what_cannot_run_is_refused_by_name() {
    if !kvm() {
        return;
    }
    let payload = support::payload().to_str().unwrap();
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), "not a kernel\n".repeat(1000)).unwrap();
    let text = text.path().to_str().unwrap();
    // As large as the whole memory, so that it cannot fit beside a kernel.
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(16 << 20).unwrap();
    let large = large.path().to_str().unwrap();
    for (words, said) in [
        (&["--kernel", text][..], "no kernel that can be booted"),
        (&["--kernel", "/nonexistent/vmlinuz"], "/nonexistent/vmlinuz"),
        (&["--kernel", payload, "--cpus", "0"], "vcpus: 0 vCPUs"),
        (&["--kernel", payload, "--cpus", "255"], "vcpus: 255 vCPUs"),
        (&["--kernel", payload, "--memory", "1"], "memory_mib"),
        (&["--kernel", payload, "--initrd", "/nonexistent/initrd"], "initramfs file"),
        (&["--kernel", payload, "--memory", "16", "--initrd", large], "kernel and initramfs together"),
    ] {
        let (code, logged) = refused(words);
        assert_eq!(code, BAD, "{words:?}: {logged}");
        assert!(logged.contains(said), "{words:?}: {logged}");
    }
}

#[test]
fn a_host_without_kvm_is_told_what_is_missing_and_what_to_do() {
    let payload = support::payload().to_str().unwrap();
    // A user and mount namespace of the test's own, in which /dev is empty.
    let script = format!(
        "mount -t tmpfs none /dev && exec {} run --kernel {payload}",
        env!("CARGO_BIN_EXE_keelson-vmm")
    );
    let out = std::process::Command::new("unshare").args(["-Urm", "sh", "-c", &script]).output().unwrap();
    let logged = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(BAD), "{logged}");
    assert!(logged.contains("/dev/kvm does not exist") && logged.contains("SVM"), "{logged}");
}

#[test]
fn a_user_without_the_right_to_kvm_is_told_so() {
    if !kvm() {
        return;
    }
    // The mode of /dev/kvm decides whether a stranger may open it, and only root can become one.
    let stranger = |words: &[&str]| {
        let id = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        std::process::Command::new("setpriv").args(id).args(words).output().unwrap()
    };
    if !nix::unistd::geteuid().is_root() || stranger(&["test", "-w", "/dev/kvm"]).status.success() {
        eprintln!("SKIPPED: not root, or everybody may open /dev/kvm");
        return;
    }
    // Copies in a place that the stranger can reach.
    let dir = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let (monitor, kernel) = (dir.path().join("keelson-vmm"), dir.path().join("payload"));
    std::fs::copy(env!("CARGO_BIN_EXE_keelson-vmm"), &monitor).unwrap();
    std::fs::copy(support::payload(), &kernel).unwrap();
    let out = stranger(&[monitor.to_str().unwrap(), "run", "--kernel", kernel.to_str().unwrap()]);
    let logged = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(BAD), "{logged}");
    assert!(logged.contains("may not be opened by uid 65534"), "{logged}");
}

fn unit_config(cmdline: &str) -> keelson_vmm_control::MachineConfig {
    keelson_vmm_control::MachineConfig {
        name: "unit".into(),
        uuid: uuid::Uuid::from_u128(7),
        vcpus: 1,
        memory_mib: 64,
        cpu: keelson_vmm_control::Cpu::default(),
        boot: keelson_vmm_control::Boot { cmdline: cmdline.into() },
        disks: vec![],
        nics: vec![],
    }
}

#[test]
fn a_unit_runs_on_the_descriptors_that_it_is_given_and_opens_nothing() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (control, console) = (dir.path().join("control.sock"), dir.path().join("console.sock"));
    let kvm_fd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").unwrap();
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(64 << 20).unwrap();
    let config = serde_json::to_vec(&unit_config("echo")).unwrap();
    let fds = vec![
        ("kvm", kvm_fd.into()),
        ("config", file_with(&config)),
        ("memory", memory.try_clone().unwrap().into()),
        ("kernel", std::fs::File::open(support::payload()).unwrap().into()),
        ("control", std::os::unix::net::UnixListener::bind(&control).unwrap().into()),
        ("console", std::os::unix::net::UnixListener::bind(&console).unwrap().into()),
    ];
    let mut child = unit(monitor(), &fds).spawn().unwrap();
    let mut client = UnixStream::connect(&console).unwrap();
    std::io::Write::write_all(&mut client, b"hello ").unwrap();
    let mut text = vec![];
    while !text.ends_with(b"ready\nhello ") {
        let mut byte = [0];
        std::io::Read::read_exact(&mut client, &mut byte).unwrap();
        text.push(byte[0]);
    }
    let status = keelson_vmm_control::Client::connect(&control).unwrap().status().unwrap();
    assert_eq!((status.name.as_str(), status.uuid.as_u128()), ("unit", 7));
    // The payload counts its boots there, in the memory that was handed in.
    let mut boots = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut boots, 0x90_0000).unwrap();
    assert_eq!(u64::from_le_bytes(boots), 1);
    std::io::Write::write_all(&mut client, b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(OFF));
}

#[test]
fn a_unit_says_what_is_wrong_with_what_it_is_given() {
    if !kvm() {
        return;
    }
    let good = serde_json::to_string(&unit_config("off")).unwrap();
    let no_kvm = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let run = |config: &str, with_kernel: bool| {
        let dir = tempfile::tempdir().unwrap();
        let control = std::os::unix::net::UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let mut fds =
            vec![("config", file_with(config.as_bytes())), ("kvm", no_kvm()), ("control", control.into())];
        if with_kernel {
            fds.push(("kernel", std::fs::File::open(support::payload()).unwrap().into()));
        }
        let out = unit(monitor(), &fds).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    for (config, with_kernel, said) in [
        (good.as_str(), false, "no descriptor named `kernel`"),
        (&good, true, "does not answer as KVM"),
        (&good.replace("\"vcpus\":1", "\"vcpus\":0"), true, "vcpus: 0 vCPUs"),
        (&good.replace("\"vcpus\"", "\"cpus\""), true, "unknown field `cpus`"),
    ] {
        let (code, logged) = run(config, with_kernel);
        assert_eq!(code, Some(BAD), "{logged}");
        assert!(logged.contains(said), "{said}: {logged}");
    }
}

#[test]
fn a_terminal_is_raw_while_the_machine_runs_and_as_before_afterwards() {
    if !kvm() {
        return;
    }
    use nix::sys::termios::{LocalFlags, tcgetattr};
    let pty = nix::pty::openpty(None, None).unwrap();
    let flags = || tcgetattr(&pty.slave).unwrap().local_flags;
    assert!(flags().contains(LocalFlags::ECHO | LocalFlags::ICANON));
    let mut child = monitor()
        .args(["run", "--memory", "64", "--cmdline", "echo", "--kernel"])
        .arg(support::payload())
        .stdin(pty.slave.try_clone().unwrap())
        .stdout(pty.slave.try_clone().unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut terminal = std::fs::File::from(pty.master);
    let mut until = |end: &str| {
        let mut text = String::new();
        while !text.ends_with(end) {
            let mut byte = [0];
            std::io::Read::read_exact(&mut terminal, &mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        terminal.try_clone().unwrap()
    };
    let mut typist = until("ready\r\n");
    assert!(!flags().intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
    // Ctrl-C is the guest's, as any other key; Ctrl-] is ours.
    std::io::Write::write_all(&mut typist, b"a\x03b").unwrap();
    until("a\x03b");
    std::io::Write::write_all(&mut typist, b"\x1d").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(KILLED));
    assert!(flags().contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
}
