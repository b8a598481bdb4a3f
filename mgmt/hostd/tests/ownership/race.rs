//! Hosts that race for one VM on a local file system: threads of one process, and processes.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Stdio};

use keelson_hostd::ownership::{Outcome, State};

use crate::{epochs, take};

/// Where a racing process finds the VM, which host it is, and how often it is to win.
const PLACE: &str = "KEELSON_TEST_RACE";

/// Powers the VM on and off until it has won `wins` times. While it holds the VM nobody else may.
fn race(vm: &Path, host: u128, wins: usize) {
    let held = vm.with_extension("held");
    let mut won = 0;
    while won < wins {
        match take(vm, host, State::Running) {
            Outcome::Won(_) => {
                // Fails when another holds it: the file is each winner's own.
                drop(OpenOptions::new().write(true).create_new(true).open(&held).unwrap());
                won += 1;
                std::fs::remove_file(&held).unwrap();
                let off = take(vm, host, State::Off);
                // Somebody may have taken what was off before this host has looked again.
                assert!(matches!(off, Outcome::Won(_) | Outcome::Lost { to: Ok(_), .. }), "{off:?}");
            }
            Outcome::Lost { .. } | Outcome::Refused(_) => std::thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}

fn judge(vm: &Path, hosts: u128, wins: usize) {
    let epochs = epochs(vm);
    assert_eq!(epochs.len(), hosts as usize * wins * 2);
    for run in epochs.chunks(2) {
        let [(on, State::Running), (off, State::Off)] = run else { panic!("{run:?}") };
        assert_eq!(on, off);
    }
    for host in 1..=hosts {
        let runs = epochs.iter().filter(|(h, state)| *h == host && *state == State::Running).count();
        assert_eq!(runs, wins, "host {host}");
    }
}

#[test]
fn threads_race_and_each_epoch_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let vm = dir.path().join("vm");
    std::fs::create_dir(&vm).unwrap();
    std::thread::scope(|scope| {
        for host in 1..=4 {
            let vm = &vm;
            scope.spawn(move || race(vm, host, 5));
        }
    });
    judge(&vm, 4, 5);
}

#[test]
fn processes_race_and_each_epoch_has_one_winner() {
    let dir = tempfile::tempdir().unwrap();
    let vm = dir.path().join("vm");
    std::fs::create_dir(&vm).unwrap();
    let hosts: Vec<_> = (1..=3)
        .map(|host| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "race::one_of_the_racing_processes", "--nocapture"])
                .env(PLACE, format!("{host} {}", vm.display()))
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    // All are waited for before one is judged: a process left behind would race with the next test.
    let ends: Vec<_> = hosts.into_iter().map(|mut host| host.wait().unwrap()).collect();
    assert!(ends.iter().all(std::process::ExitStatus::success), "{ends:?}");
    judge(&vm, 3, 5);
}

/// The part of a process of the test above; without a place to race there is nothing to do.
#[test]
fn one_of_the_racing_processes() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let (host, vm) = place.split_once(' ').unwrap();
    race(Path::new(vm), host.parse().unwrap(), 5);
}
