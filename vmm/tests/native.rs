//! The monitor on this machine's KVM, with a freestanding payload as the guest.

mod support;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use keelson_vmm_control::{Event, ExitCode, MachineState, Request};
use support::{Vm, kvm, last_number, monitor};

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
    assert_eq!((status.state, status.vcpus, status.memory_mib, status.resets), (MachineState::Running, 1, 128, 0));
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
    assert!(beats.windows(2).all(|w| w[1] == w[0] + 1 || w[1].to_string().len() < w[0].to_string().len()), "{printed}");
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
        let sent = std::process::Command::new("kill").args([name, &vm.child.id().to_string()]).status().unwrap();
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
    let mut vm = Vm::run("smp=4", &["--cpus", "4"]);
    assert_eq!(vm.number("cpus"), 4);
    assert_eq!(vm.exit_code(), OFF);
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
