//! Suspended machines natively on KVM: a guest that checks itself is brought back in another process, and whatever is not the whole state of
//! this very machine is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failure of a test is a panic

mod support;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use keelson_vmm::state::file::StateFile;
use keelson_vmm_control::{
    Boot, Client, Disk, ExitCode, MachineConfig, MachineState, Request, StateSet, Status, fd_names,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::{Fds, Vm, file_with, kvm, monitor, payload, unit};

const SUSPENDED: i32 = ExitCode::Suspended as i32;
const BAD: i32 = ExitCode::BadConfig as i32;
const CHECK: &str = "check=24 blocks=64";

fn disk(path: &Path) -> String {
    format!("{},serial=kept", path.display())
}

/// An empty disk of 1 MiB.
fn empty_disk(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// The numbers of the lines `name number`.
fn numbers(text: &str, name: &str) -> Vec<u64> {
    text.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).collect()
}

/// Waits until the guest has gone on for a while, and is content.
fn goes_on(vm: &Vm, rounds: u64) -> u64 {
    let start = vm.number("round");
    for round in start..=start + rounds {
        vm.expect(&format!("round {round}\n"));
    }
    content(&vm.printed());
    start + rounds
}

fn content(printed: &str) {
    assert!(!printed.contains("wrong") && !printed.contains("failed"), "{printed}");
}

fn suspend_into(vm: &Vm, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let socket = vm.dir.path().join("control.sock");
    let out = monitor().arg("suspend").arg("--control").arg(socket).arg(dir).output().unwrap();
    assert!(out.status.success(), "{} {}", String::from_utf8_lossy(&out.stderr), vm.logged());
}

/// The words of a machine with one disk.
fn words(disk_path: &Path, more: &[&str]) -> Vec<String> {
    let mut words = vec!["--memory".to_owned(), "96".into(), "--disk".into(), disk(disk_path)];
    words.extend(more.iter().map(|w| (*w).to_owned()));
    words
}

fn run(words: &[String]) -> Vm {
    Vm::run(CHECK, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The exit code and the log of a monitor that is to refuse.
fn refused(words: &[String]) -> (i32, String) {
    let mut command = monitor();
    command.args(["run", "--cmdline", CHECK, "--kernel"]).arg(payload()).args(words);
    let out = command.stdin(std::process::Stdio::null()).output().unwrap();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_machine_goes_on_where_it_was_again_and_again_with_its_disk_elsewhere() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut disk_path = empty_disk(dir.path(), "disk.0");
    let mut vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 100);
    let mut printed = String::new();
    for turn in 1..=3 {
        let saved = dir.path().join(format!("saved.{turn}"));
        suspend_into(&vm, &saved);
        assert_eq!(vm.exit_code(), SUSPENDED, "{}", vm.logged());
        printed += &vm.all_printed();
        let moved = dir.path().join(format!("disk.{turn}"));
        std::fs::rename(&disk_path, &moved).unwrap();
        disk_path = moved;
        vm = run(&words(&disk_path, &["--restore", saved.to_str().unwrap()]));
        goes_on(&vm, 70);
        let (code, logged) = refused(&words(&disk_path, &["--restore", saved.to_str().unwrap()]));
        assert_eq!(code, BAD);
        assert!(logged.contains("used before"), "{logged}");
    }
    vm.control().tell(&Request::Kill).unwrap();
    vm.exit_code();
    printed += &vm.all_printed();
    content(&printed);
    // Not a byte of its output is missing or there twice: it went on within the line in which it was stopped.
    let rounds = numbers(&printed, "round");
    assert!(rounds.len() > 300 && rounds.iter().copied().eq(1..=rounds.len() as u64), "{printed}");
}

#[test]
fn no_time_passes_for_a_suspended_guest_but_its_clock_of_the_day_is_right() {
    if !kvm() {
        return;
    }
    let kvm = kvm_ioctls::Kvm::new().unwrap();
    let khz = kvm.create_vm().unwrap().create_vcpu(0).unwrap().get_tsc_khz().unwrap();
    let cycles = |time: Duration| time.as_micros() * u128::from(khz) / 1000;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let started = Instant::now();
    let mut vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 3);
    // A counter that does not begin with the machine is the host's: a KVM without hardware behind it cannot change what ring 3 reads.
    let own_counter = u128::from(vm.number("tsc")) <= cycles(started.elapsed());
    // All that the guest can have run since its last words before the pause, and until its first ones after it.
    let began = Instant::now();
    goes_on(&vm, 3);
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    let mut ran = began.elapsed();
    vm.exit_code();
    let last = *numbers(&vm.all_printed(), "tsc").last().unwrap();
    // The passing of time is what is tested.
    std::thread::sleep(Duration::from_secs(3));
    let (before, began) = (now(), Instant::now());
    let vm = run(&words(&disk_path, &["--restore", saved.to_str().unwrap()]));
    vm.number("tsc");
    ran += began.elapsed();
    let first = numbers(&vm.printed(), "tsc")[0];
    if own_counter {
        let (passed, most) = (u128::from(first - last), cycles(ran + ran / 50));
        assert!(passed <= most, "{passed} cycles passed for the guest, in {ran:?} it has at most {most}");
    } else {
        eprintln!("SKIPPED in part: this KVM gives its guests the host's time-stamp counter");
    }
    goes_on(&vm, 10);
    // The first may be of before the pause.
    let days = numbers(&vm.printed(), "day");
    let within = |day: u64| (before..=now()).any(|second| second % 86_400 == day);
    assert!(days.iter().skip(1).all(|day| within(*day)), "{days:?} from {before} on");
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    let bit = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| bit(crc)))
}

/// Where each section of a state file begins, and its kind.
fn section_starts(state: &[u8]) -> Vec<(usize, String)> {
    let (mut starts, mut at) = (vec![], 64);
    while at < state.len() {
        let kind = String::from_utf8_lossy(&state[at..at + 16]).trim_end_matches('\0').to_owned();
        starts.push((at, kind));
        at += 32 + u32::from_le_bytes(state[at + 24..at + 28].try_into().unwrap()) as usize;
    }
    starts
}

/// Makes the checksum of the section at `at` right again.
fn seal(state: &mut [u8], at: usize) {
    let length = u32::from_le_bytes(state[at + 24..at + 28].try_into().unwrap()) as usize;
    let sealed = state[at..at + 28].iter().chain(&state[at + 32..at + 32 + length]);
    let crc = crc32c(sealed.copied());
    state[at + 28..at + 32].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_state_holds_every_device_and_each_kind_is_frozen() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = run(&words(&empty_disk(dir.path(), "disk"), &["--cpus", "2"]));
    goes_on(&vm, 1);
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    let opened = StateFile::open(read_write(&saved.join("state"))).unwrap();
    let names: Vec<_> =
        opened.sections.names().map(|(kind, instance)| format!("{kind} {instance}")).collect();
    let expected = [
        "acpi-pm 0",
        "host-bridge 0",
        "machine 0",
        "pci-config-ports 0",
        "reset-control 0",
        "rtc 0",
        "uart-16550 0",
        "vcpu 0",
        "vcpu 1",
        "virtio-blk 2",
        "virtio-rng 1",
        "vm 0",
    ];
    assert_eq!(names, expected);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (kind, _) in opened.sections.names() {
        let frozen = std::fs::read_dir(&golden).unwrap();
        let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut frozen = frozen.map(|entry| name(entry.unwrap()));
        assert!(frozen.any(|name| name.starts_with(&format!("{kind}."))), "{kind} has no golden bytes");
    }
}

/// What is done to one section of a state.
#[derive(Debug, Clone)]
enum Change {
    /// These bytes.
    Bytes(Vec<(prop::sample::Index, u8)>),
    /// The contents of another section.
    Swap(prop::sample::Index),
}

fn changed(state: &[u8], section: prop::sample::Index, change: Change) -> Vec<u8> {
    let mut state = state.to_vec();
    let starts = section_starts(&state);
    let pick = |index: prop::sample::Index| starts[index.index(starts.len() - 1)].0;
    let length =
        |state: &[u8], at: usize| u32::from_le_bytes(state[at + 24..at + 28].try_into().unwrap()) as usize;
    let at = pick(section);
    let own = length(&state, at);
    match change {
        Change::Swap(other) => {
            let from = pick(other);
            let body = state[from + 32..from + 32 + length(&state, from)].to_vec();
            state[at + 24..at + 28].copy_from_slice(&(body.len() as u32).to_le_bytes());
            state.splice(at + 32..at + 32 + own, body);
        }
        Change::Bytes(changes) if own > 0 => {
            changes.into_iter().for_each(|(index, value)| state[at + 32 + index.index(own)] = value);
        }
        Change::Bytes(_) => {}
    }
    seal(&mut state, at);
    state
}

/// Sections whose checksums are right, but not their contents: the machine is refused, or runs into whatever that makes of it. The monitor
/// never panics.
#[test]
fn a_state_with_wrong_sections_does_no_harm() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 2);
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    drop(vm);
    let state = std::fs::read(saved.join("state")).unwrap();
    let byte = (any::<prop::sample::Index>(), any::<u8>());
    let change = prop_oneof![
        3 => prop::collection::vec(byte, 1..6).prop_map(Change::Bytes),
        1 => any::<prop::sample::Index>().prop_map(Change::Swap),
    ];
    let config = ProptestConfig { cases: 40, max_shrink_iters: 0, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let ran = runner.run(&(any::<prop::sample::Index>(), change), |(section, change)| {
        let bad = tempfile::tempdir_in(dir.path()).unwrap();
        std::fs::write(bad.path().join("state"), changed(&state, section, change)).unwrap();
        std::fs::hard_link(saved.join("memory"), bad.path().join("memory")).unwrap();
        let mut vm = run(&words(&disk_path, &["--restore", bad.path().to_str().unwrap()]));
        let code = loop {
            if let Some(status) = vm.child.try_wait().unwrap() {
                break status.code();
            }
            // It runs, somehow.
            if let Ok(mut control) = Client::connect(vm.dir.path().join("control.sock"))
                && control.tell(&Request::Kill).is_ok()
            {
                break Some(vm.exit_code());
            }
        };
        prop_assert!(code.is_some_and(|code| (0..=4).contains(&code)), "{:?}: {}", code, vm.logged());
        Ok(())
    });
    ran.unwrap();
}

/// This release and the one before exchange machines, both ways. `KEELSON_VMM_PREVIOUS` names a monitor that was built with the feature
/// `as-previous`; this test is there in a build with the feature `previous-state`.
#[cfg(feature = "previous-state")]
#[test]
fn a_machine_goes_to_and_fro_between_two_releases() {
    if !kvm() {
        return;
    }
    let Some(older) = std::env::var_os("KEELSON_VMM_PREVIOUS") else {
        return eprintln!("SKIPPED: KEELSON_VMM_PREVIOUS names no monitor of the release before");
    };
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let start = |program: &std::ffi::OsStr, more: &[&str]| {
        let mut command = Command::new(program);
        command.args(["run", "--cmdline", CHECK, "--kernel"]).arg(payload()).args(words(&disk_path, more));
        Vm::spawn(command)
    };
    let suspend = |vm: &mut Vm, name: &str, more: &[&str]| {
        let saved = dir.path().join(name);
        std::fs::create_dir(&saved).unwrap();
        let socket = vm.dir.path().join("control.sock");
        let out =
            monitor().args(["suspend", "--control"]).arg(socket).args(more).arg(&saved).output().unwrap();
        assert!(out.status.success(), "{}", vm.logged());
        assert_eq!(vm.exit_code(), SUSPENDED);
        saved.to_str().unwrap().to_owned()
    };
    let newer = Path::new(env!("CARGO_BIN_EXE_keelson-vmm")).as_os_str();
    let mut vm = start(&older, &[]);
    goes_on(&vm, 70);
    for turn in 0..2 {
        let saved = suspend(&mut vm, &format!("up.{turn}"), &[]);
        vm = start(newer, &["--restore", &saved]);
        goes_on(&vm, 70);
        let saved = suspend(&mut vm, &format!("down.{turn}"), &["--previous"]);
        vm = start(&older, &["--restore", &saved]);
        goes_on(&vm, 70);
    }
    vm.control().tell(&Request::Kill).unwrap();
    // What was not written down is not understood, and says so.
    let vm = start(newer, &[]);
    goes_on(&vm, 1);
    let saved = dir.path().join("newer");
    suspend_into(&vm, &saved);
    let mut vm = start(&older, &["--restore", saved.to_str().unwrap()]);
    assert_eq!(vm.exit_code(), BAD);
    assert!(vm.all_logged().contains("version: 1 is not understood"), "{}", vm.logged());
}

/// A command in a network namespace of its own, where taps can be made at will.
fn apart() -> Option<Command> {
    let mut command = Command::new("unshare");
    command.arg("-n");
    let works = nix::unistd::geteuid().is_root() && command.arg("true").status().is_ok_and(|s| s.success());
    if !works || !Path::new("/dev/net/tun").exists() {
        eprintln!("SKIPPED: no taps without root and /dev/net/tun");
        return None;
    }
    let mut command = Command::new("unshare");
    command.arg("-n").arg(env!("CARGO_BIN_EXE_keelson-vmm"));
    Some(command)
}

#[test]
fn a_machine_with_an_adapter_goes_on_with_another_tap() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let start = |tap: &str, more: &[&str]| {
        let mut command = apart()?;
        command.args(["run", "--cmdline", CHECK, "--kernel"]).arg(payload());
        command.args(words(&disk_path, &["--tap", &format!("{tap},mac=02:00:00:00:00:07")])).args(more);
        Some(Vm::spawn(command))
    };
    let Some(mut vm) = start("one", &[]) else { return };
    goes_on(&vm, 5);
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    assert_eq!(vm.exit_code(), SUSPENDED);
    let restore = ["--restore", saved.to_str().unwrap()];
    let (code, logged) = refused(&words(&disk_path, &restore));
    assert!(code == BAD && logged.contains("virtio-net 18"), "{logged}");
    let vm = start("two", &restore).unwrap();
    goes_on(&vm, 70);
}

/// What a second process needs to bring a machine back from descriptors.
struct Given {
    dir: tempfile::TempDir,
    status: Status,
    disk: PathBuf,
    last: u64,
}

/// A machine that was suspended and then killed without a word.
fn suspended_and_killed() -> Given {
    // Others may look up what is in it: the second process has another uid.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    let disk = empty_disk(dir.path(), "disk");
    let mut vm = run(&words(&disk, &[]));
    goes_on(&vm, 80);
    let (state, memory) = (read_write(&dir.path().join("state")), read_write(&dir.path().join("memory")));
    let mut control = vm.control();
    control.suspend(state.as_fd(), memory.as_fd(), StateSet::Current).unwrap();
    let status = control.status().unwrap();
    assert_eq!(status.state, MachineState::Paused);
    let last = vm.number("round");
    vm.child.kill().unwrap();
    vm.child.wait().unwrap();
    Given { dir, status, disk, last }
}

fn unit_fds(given: &Given, userfaultfd: bool) -> Fds {
    let path = |name: &str| given.dir.path().join(name);
    let config = MachineConfig {
        name: "unit".into(),
        uuid: given.status.uuid,
        vcpus: 1,
        memory_mib: 96,
        cpu: keelson_vmm_control::Cpu::default(),
        boot: Boot { cmdline: CHECK.into() },
        disks: vec![Disk { fd: "root".into(), read_only: false, serial: "kept".into() }],
        nics: vec![],
    };
    for socket in ["control.sock", "console.sock"] {
        let _ = std::fs::remove_file(path(socket));
    }
    let mut fds: Fds = vec![
        (fd_names::KVM, read_write(Path::new("/dev/kvm")).into()),
        (fd_names::CONFIG, file_with(&serde_json::to_vec(&config).unwrap())),
        (fd_names::KERNEL, File::open(payload()).unwrap().into()),
        (fd_names::CONTROL, UnixListener::bind(path("control.sock")).unwrap().into()),
        (fd_names::CONSOLE, UnixListener::bind(path("console.sock")).unwrap().into()),
        (fd_names::SAVED_STATE, read_write(&path("state")).into()),
        (fd_names::SAVED_MEMORY, File::open(path("memory")).unwrap().into()),
        ("root", read_write(&given.disk).into()),
    ];
    if userfaultfd && let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
        fds.push((fd_names::USERFAULTFD, OwnedFd::from(device)));
    }
    fds
}

/// A command that runs the monitor as nobody, when this user may do that.
fn as_nobody(dir: &Path) -> Command {
    let copy = dir.join("keelson-vmm");
    std::fs::copy(env!("CARGO_BIN_EXE_keelson-vmm"), &copy).unwrap();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED in part: not root, so the second process has the same uid");
        return Command::new(copy);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]).arg(copy);
    command
}

#[test]
fn after_a_kill_a_process_of_another_user_brings_it_back_from_descriptors_alone() {
    if !kvm() {
        return;
    }
    for userfaultfd in [true, false] {
        let given = suspended_and_killed();
        let fds = unit_fds(&given, userfaultfd);
        let mut child = unit(as_nobody(given.dir.path()), &fds).spawn().unwrap();
        drop(fds);
        let mut console = UnixStream::connect(given.dir.path().join("console.sock")).unwrap();
        console.set_read_timeout(Some(support::PATIENCE)).unwrap();
        let (mut text, end) = (String::new(), format!("round {}\n", given.last + 100));
        while !text.contains(&end) {
            let mut bytes = [0; 256];
            let length = console.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "it ended after: {text}");
            text.push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
        content(&text);
        assert!(!text.contains("boot"), "it was booted, not brought back: {text}");
        let mut control = Client::connect(given.dir.path().join("control.sock")).unwrap();
        // It can be suspended again, also while its memory may still be on its way.
        let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        control.suspend(state.as_fd(), memory.as_fd(), StateSet::Current).unwrap();
        control.tell(&Request::Kill).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(SUSPENDED));
    }
}

#[test]
fn a_suspended_machine_may_go_on_in_its_own_process_and_its_state_is_void_then() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 5);
    let (state, memory) = (read_write(&dir.path().join("state")), read_write(&dir.path().join("memory")));
    let mut control = vm.control();
    control.suspend(state.as_fd(), memory.as_fd(), StateSet::Current).unwrap();
    assert_eq!(control.status().unwrap().state, MachineState::Paused);
    control.tell(&Request::Resume).unwrap();
    goes_on(&vm, 5);
    drop(vm);
    let (code, logged) = refused(&words(&disk_path, &["--restore", dir.path().to_str().unwrap()]));
    assert_eq!(code, BAD);
    assert!(logged.contains("used before"), "{logged}");
}

#[test]
fn whoever_saved_a_machine_cannot_go_on_once_another_process_has() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let first = run(&words(&disk_path, &[]));
    goes_on(&first, 5);
    let mut control = first.control();
    let pair = || (read_write(&dir.path().join("state")), read_write(&dir.path().join("memory")));
    let (state, memory) = pair();
    control.suspend(state.as_fd(), memory.as_fd(), StateSet::Current).unwrap();
    drop((state, memory));
    let second = run(&words(&disk_path, &["--restore", dir.path().to_str().unwrap()]));
    goes_on(&second, 5);
    let (state, memory) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    for _ in 0..2 {
        let refused = control.tell(&Request::Resume).unwrap_err();
        assert!(refused.to_string().contains("used before"), "{refused}");
        let refused = control.suspend(state.as_fd(), memory.as_fd(), StateSet::Current).unwrap_err();
        assert!(refused.to_string().contains("used before"), "{refused}");
    }
    assert_eq!(control.status().unwrap().state, MachineState::Paused);
    goes_on(&second, 70);
}

#[test]
fn suspending_that_fails_leaves_the_machine_running() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 5);
    let mut control = vm.control();
    // Neither can be written: one is open for reading only, the other is always full.
    let (file, full) = (File::open("/dev/null").unwrap(), read_write(Path::new("/dev/full")));
    let refused = control.suspend(file.as_fd(), full.as_fd(), StateSet::Current).unwrap_err();
    assert!(refused.to_string().contains("could not be suspended"), "{refused}");
    assert_eq!(control.status().unwrap().state, MachineState::Running);
    goes_on(&vm, 5);
    assert!(control.tell(&Request::Suspend { set: StateSet::Current }).is_err(), "without descriptors");
    goes_on(&vm, 5);
}

#[test]
fn bytes_follow_what_was_touched() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = Vm::run("dirty=40 echo", &["--memory", "4096"]);
    vm.expect("ready\n");
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    let memory = std::fs::metadata(saved.join("memory")).unwrap();
    assert_eq!(memory.len(), (4096 << 20) + 4096);
    let stored = memory.blocks() * 512;
    assert!((40 << 20..44 << 20).contains(&stored), "{stored} bytes are stored");
    let vm = Vm::run("dirty=40 echo", &["--memory", "4096", "--restore", saved.to_str().unwrap()]);
    let mut control = vm.control();
    assert!(control.status().unwrap().memory_touched_mib < 64, "holes stay holes");
}

#[test]
fn processors_that_rest_are_brought_back_too() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let vm = Vm::run("smp=4 echo", &["--cpus", "4"]);
    vm.expect("counted\nready\n");
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    let mut vm = Vm::run("smp=4 echo", &["--cpus", "4", "--restore", saved.to_str().unwrap()]);
    vm.type_in("abba");
    vm.expect("abba");
    // A reset boots it as ever.
    vm.type_in("r");
    vm.expect("boot 2\ncpus 4\n");
    vm.expect("counted\nready\n");
    vm.type_in("q");
    assert_eq!(vm.exit_code(), ExitCode::GuestOff as i32, "{}", vm.logged());
}

#[test]
fn what_is_not_the_state_of_this_machine_is_refused_by_name_and_stays_usable() {
    if !kvm() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk_path = empty_disk(dir.path(), "disk");
    let vm = run(&words(&disk_path, &[]));
    goes_on(&vm, 5);
    let saved = dir.path().join("saved");
    suspend_into(&vm, &saved);
    drop(vm);
    let other = run(&words(&empty_disk(dir.path(), "other"), &[]));
    goes_on(&other, 1);
    let other_saved = dir.path().join("other.saved");
    suspend_into(&other, &other_saved);
    drop(other);

    let restore = ["--restore", saved.to_str().unwrap()];
    let good = words(&disk_path, &restore);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut words = good.clone();
        change(&mut words);
        refused(&words)
    };
    let larger = dir.path().join("larger");
    File::create(&larger).unwrap().set_len(2 << 20).unwrap();
    let replace = |words: &mut Vec<String>, at: usize, word: String| words[at] = word;
    let cases: [(&str, (i32, String)); 7] = [
        ("memory is 96 MiB", with(&|w| replace(w, 1, "128".into()))),
        ("number of vCPUs is 1", with(&|w| w.extend(["--cpus".into(), "2".into()]))),
        ("there is a section virtio-blk 2", with(&|w| drop(w.drain(2..4)))),
        ("section virtio-blk 3 is missing", with(&|w| w.extend(["--disk".into(), disk(&larger)]))),
        ("sectors", with(&|w| replace(w, 3, disk(&larger)))),
        ("serial", with(&|w| replace(w, 3, format!("{},serial=new", disk_path.display())))),
        ("read_only", with(&|w| w[3].push_str(",ro"))),
    ];
    for (said, (code, logged)) in cases {
        assert_eq!(code, BAD, "{said}: {logged}");
        assert!(logged.contains(said), "{said}: {logged}");
    }

    // Files that were cut, changed, or of another pair.
    let bad = dir.path().join("bad");
    std::fs::create_dir(&bad).unwrap();
    let in_bad = words(&disk_path, &["--restore", bad.to_str().unwrap()]);
    let copies = |state: &Path, memory: &Path| {
        std::fs::copy(state.join("state"), bad.join("state")).unwrap();
        std::fs::copy(memory.join("memory"), bad.join("memory")).unwrap();
    };
    let length = std::fs::metadata(saved.join("state")).unwrap().len();
    let damages: [(&str, &dyn Fn()); 5] = [
        ("not saved together", &|| copies(&saved, &other_saved)),
        ("cut off", &|| {
            copies(&saved, &saved);
            read_write(&bad.join("state")).set_len(length - 1).unwrap();
        }),
        ("is damaged", &|| {
            copies(&saved, &saved);
            read_write(&bad.join("state")).write_all_at(&[0x5a; 16], length / 2).unwrap();
        }),
        ("does not begin as one", &|| {
            copies(&saved, &saved);
            read_write(&bad.join("state")).set_len(0).unwrap();
        }),
        ("the memory file: it was cut off", &|| {
            copies(&saved, &saved);
            read_write(&bad.join("memory")).set_len(96 << 20).unwrap();
        }),
    ];
    for (said, damage) in damages {
        damage();
        let (code, logged) = refused(&in_bad);
        assert_eq!(code, BAD, "{said}: {logged}");
        assert!(logged.contains(said), "{said}: {logged}");
    }

    // None of that has used the state up.
    let vm = run(&good);
    goes_on(&vm, 70);
}
