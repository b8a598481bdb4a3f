//! The devices natively on KVM: doorbells and queues of a running machine, driven by the payload's own driver.

#![allow(clippy::unwrap_used, clippy::expect_used)] // a failure of a test is a panic

mod support;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use keelson_vmm_control::{ExitCode, MachineState, Request};
use support::{Vm, kvm};

const OFF: i32 = ExitCode::GuestOff as i32;
/// Blocks of 4 KiB.
const BLOCKS: u64 = 256;

/// A disk whose every block begins with its number, and whose sector n is otherwise filled with n.
fn image() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for block in 0..BLOCKS {
        for sector in 0..8u64 {
            let mut bytes = [(block * 8 + sector) as u8; 512];
            if sector == 0 {
                bytes[..8].copy_from_slice(&block.to_le_bytes());
            }
            file.write_all(&bytes).unwrap();
        }
    }
    file
}

fn disk_words(file: &tempfile::NamedTempFile) -> [String; 2] {
    ["--disk".into(), format!("{},serial=native-1", file.path().display())]
}

fn run(cmdline: &str, file: &tempfile::NamedTempFile) -> Vm {
    let words = disk_words(file);
    Vm::run(cmdline, &words.each_ref().map(String::as_str))
}

const GOOD: &str = "status 15\nread 0\nfirst 3\nwrite 0\nflush 0\nbeyond 1\nserial 0\nnative-1\n";

#[test]
fn a_disk_is_read_written_and_flushed() {
    if !kvm() {
        return;
    }
    let file = image();
    let mut vm = run("disk", &file);
    vm.expect(GOOD);
    assert_eq!(vm.exit_code(), OFF, "{}", vm.logged());
    let mut sectors = [0; 3 * 512];
    file.as_file().read_exact_at(&mut sectors, 4 * 512).unwrap();
    assert_eq!(sectors, [[4; 512], [0xab; 512], [6; 512]].concat()[..]);
}

#[test]
fn a_read_only_disk_is_not_written() {
    if !kvm() {
        return;
    }
    let file = image();
    let [option, path] = disk_words(&file);
    let mut vm = Vm::run("disk", &[&option, &format!("{path},ro")]);
    vm.expect("read 0\nfirst 3\nwrite 1\nflush 0\n");
    assert_eq!(vm.exit_code(), OFF);
    let mut sector = [0; 512];
    file.as_file().read_exact_at(&mut sector, 5 * 512).unwrap();
    assert_eq!(sector, [5; 512]);
}

#[test]
fn a_driver_that_breaks_the_rules_meets_a_device_that_a_reset_heals() {
    if !kvm() {
        return;
    }
    let file = image();
    let mut vm = run("bad-chain", &file);
    vm.expect(&format!("status 15\nneeds reset\n{GOOD}"));
    assert_eq!(vm.exit_code(), OFF);
    assert!(vm.logged().contains("it has no end"), "the log says what the driver did: {}", vm.logged());
}

#[test]
fn entropy_is_random() {
    if !kvm() {
        return;
    }
    let mut vm = Vm::run("entropy", &[]);
    vm.expect("entropy 64\nrandom\n");
    assert_eq!(vm.exit_code(), OFF);
}

#[test]
fn a_machine_is_paused_in_the_middle_of_disk_load_and_goes_on() {
    if !kvm() {
        return;
    }
    let file = image();
    let vm = run(&format!("load=32 blocks={BLOCKS}"), &file);
    let mut control = vm.control();
    for round in 1..=10 {
        let before = vm.number("served");
        control.tell(&Request::Pause).unwrap();
        assert_eq!(control.status().unwrap().state, MachineState::Paused);
        control.tell(&Request::Resume).unwrap();
        let end = Instant::now() + support::PATIENCE;
        while vm.number("served") < before + 5_000 {
            assert!(Instant::now() < end, "round {round}: nothing is served any more: {}", vm.printed());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert!(!vm.printed().contains("wrong") && !vm.printed().contains("failed"));
}

#[test]
fn a_machine_is_reset_in_the_middle_of_disk_load_and_the_disk_works() {
    if !kvm() {
        return;
    }
    let file = image();
    let vm = run(&format!("load=32 blocks={BLOCKS}"), &file);
    for boot in 2..=5 {
        vm.number("served");
        vm.control().tell(&Request::Reset).unwrap();
        vm.expect(&format!("boot {boot}\nstatus 15\nserved 5000\n"));
    }
}
