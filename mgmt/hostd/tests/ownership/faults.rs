//! Two hosts on a store that hangs, loses replies and makes links late: docs/ownership.md has the outcomes that are permitted, and
//! each test has one row.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use keelson_hostd::datastores::Directory;
use keelson_hostd::ownership::{Cause, Claim, Entry, Epoch, Outcome, Owners, State, TakeError};
use nix::errno::Errno;
use uuid::Uuid;

use crate::store::{Fault, Mount};
use crate::{begin, end, epochs, take};

const EIO: i32 = Errno::EIO as i32;
/// How long what must come may take.
const LONG: Duration = Duration::from_secs(60);
const ESTALE: i32 = Errno::ESTALE as i32;

/// Two mounts of one store. The first host's links have the fates given.
struct Shared {
    a: Mount,
    b: Mount,
    backing: PathBuf,
    _dir: tempfile::TempDir,
}

impl Shared {
    fn new(faults: &[Fault]) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let backing = dir.path().join("store");
        std::fs::create_dir(&backing).unwrap();
        let mounts = Mount::new(&backing, faults).and_then(|a| Ok((a, Mount::new(&backing, &[])?)));
        match mounts {
            Ok((a, b)) => Some(Self { a, b, backing, _dir: dir }),
            Err(e) => {
                let required = std::env::var("KEELSON_REQUIRE").unwrap_or_default();
                let missing = format!("a FUSE file system cannot be mounted: {e}");
                assert!(!required.split(',').any(|tier| tier == "lab"), "lab is required, and {missing}");
                eprintln!("SKIPPED: {missing}");
                None
            }
        }
    }

    fn epochs(&self) -> Vec<(u128, State)> {
        epochs(&self.backing)
    }

    /// What is in the directory beside owner files.
    fn others(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.backing).unwrap().map(|e| e.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| !name.starts_with("owner.")).collect()
    }
}

fn won(outcome: &Outcome, epoch: u64) -> bool {
    matches!(outcome, Outcome::Won(proof) if proof.epoch().number() == epoch)
}

fn lost_to(outcome: &Outcome, host: u128) -> bool {
    matches!(outcome, Outcome::Lost { to: Ok(record), .. } if record.host_id.as_u128() == host)
}

#[test]
fn without_faults_hosts_take_turns() {
    let Some(shared) = Shared::new(&[]) else { return };
    assert!(won(&take(shared.a.path(), 1, State::Running), 1));
    assert!(matches!(take(shared.b.path(), 2, State::Running), Outcome::Refused(_)));
    assert!(won(&take(shared.a.path(), 1, State::Off), 2));
    assert!(won(&take(shared.b.path(), 2, State::Running), 3));
    assert_eq!(shared.epochs(), [(1, State::Running), (1, State::Off), (2, State::Running)]);
    assert!(shared.others().is_empty());
}

#[test]
fn a_link_that_was_made_and_answered_with_an_error_is_won() {
    for errno in [EIO, ESTALE, Errno::EEXIST as i32, Errno::EROFS as i32] {
        let Some(shared) = Shared::new(&[Fault::LostReply(errno)]) else { return };
        assert!(won(&take(shared.a.path(), 1, State::Running), 1), "{errno}");
        assert!(matches!(take(shared.b.path(), 2, State::Running), Outcome::Refused(_)));
        assert!(shared.others().is_empty());
    }
}

#[test]
fn a_link_that_comes_late_changes_nothing_for_whoever_won_meanwhile() {
    let Some(shared) = Shared::new(&[Fault::Late(EIO); 64]) else { return };
    let open = begin(shared.a.path(), 1, State::Running, Claim::Own);
    shared.a.await_links(2);
    assert_eq!(open.wait(Instant::now()), None, "an error concludes nothing");
    assert!(won(&take(shared.b.path(), 2, State::Running), 1));
    assert_eq!(shared.a.land(), 0, "the name is taken");
    assert!(lost_to(&end(&open), 2));
    assert_eq!(shared.epochs(), [(2, State::Running)]);
}

#[test]
fn a_link_that_comes_late_wins_where_nobody_was_quicker() {
    let Some(shared) = Shared::new(&[Fault::Late(ESTALE); 64]) else { return };
    let open = begin(shared.a.path(), 1, State::Running, Claim::Own);
    shared.a.await_links(2);
    assert_eq!(shared.a.land(), 1, "of several attempts with one record one is made");
    assert!(matches!(take(shared.b.path(), 2, State::Running), Outcome::Refused(_)));
    assert!(won(&end(&open), 1));
    assert_eq!(shared.epochs(), [(1, State::Running)]);
}

#[test]
fn a_late_link_of_an_attempt_before_is_not_taken_for_the_present_one() {
    let Some(shared) = Shared::new(&[Fault::Late(Errno::ENOSPC as i32)]) else { return };
    // The store lies: it says that it has refused what it will do.
    assert!(matches!(take(shared.a.path(), 1, State::Running), Outcome::NotTaken(_)));
    assert_eq!(shared.a.land(), 1);
    let again = take(shared.a.path(), 1, State::Running);
    assert!(won(&again, 2), "the host's own epoch is followed by its next: {again:?}");
    assert_eq!(shared.epochs(), [(1, State::Running), (1, State::Running)]);
}

#[test]
fn a_full_store_that_means_it_is_told_at_once() {
    let Some(shared) = Shared::new(&[Fault::Late(Errno::ENOSPC as i32)]) else { return };
    assert!(matches!(take(shared.a.path(), 1, State::Running), Outcome::NotTaken(_)));
    assert!(won(&take(shared.b.path(), 2, State::Running), 1));
}

#[test]
fn while_the_store_hangs_the_outcome_is_open_and_another_host_may_win() {
    let Some(shared) = Shared::new(&[Fault::HangsBefore]) else { return };
    let open = begin(shared.a.path(), 1, State::Running, Claim::Own);
    shared.a.await_hang();
    assert_eq!(open.wait(Instant::now()), None);
    assert!(won(&take(shared.b.path(), 2, State::Running), 1));
    shared.a.go_on();
    assert!(lost_to(&end(&open), 2));
    assert_eq!(shared.epochs(), [(2, State::Running)]);
}

#[test]
fn whoever_stops_waiting_leaves_a_take_that_goes_on_and_is_told_of() {
    let Some(shared) = Shared::new(&[Fault::HangsBefore]) else { return };
    let (sender, orphans) = channel();
    let owners = Owners::new(Uuid::from_u128(1), "boot".into(), sender);
    let directory = Directory::root(shared.a.path()).unwrap();
    let vm = Uuid::from_u128(9);
    let take = |state, limit| {
        let entry = Entry { state, cause: Cause::PowerOn, note: None };
        owners.take(vm, &directory, "host1", entry, Claim::Own, limit)
    };
    assert!(matches!(take(State::Running, Duration::ZERO), Err(TakeError::Open)));
    shared.a.await_hang();
    // The next take of this VM does not begin before.
    assert!(matches!(take(State::Off, Duration::ZERO), Err(TakeError::Open)));
    assert!(matches!(owners.settled(vm, Duration::ZERO), Err(TakeError::Open)));
    shared.a.go_on();
    assert_eq!(orphans.recv_timeout(LONG).unwrap(), vm);
    assert!(won(&take(State::Off, LONG).unwrap(), 2));
    assert_eq!(shared.epochs(), [(1, State::Running), (1, State::Off)]);
}

#[test]
fn a_store_that_hangs_after_the_link_has_decided() {
    let Some(shared) = Shared::new(&[Fault::HangsAfter]) else { return };
    let open = begin(shared.a.path(), 1, State::Running, Claim::Own);
    shared.a.await_hang();
    assert_eq!(open.wait(Instant::now()), None);
    assert!(matches!(take(shared.b.path(), 2, State::Running), Outcome::Refused(_)));
    shared.a.go_on();
    assert!(won(&end(&open), 1));
}

#[test]
fn a_host_that_was_taken_over_while_it_was_frozen_has_lost() {
    let Some(shared) = Shared::new(&[Fault::HangsAfter]) else { return };
    let open = begin(shared.a.path(), 1, State::Running, Claim::Own);
    shared.a.await_hang();
    let claim = Claim::Force { epoch: Epoch::FIRST };
    assert!(won(&end(&begin(shared.b.path(), 2, State::Running, claim)), 2));
    shared.a.go_on();
    assert!(lost_to(&end(&open), 2));
    assert_eq!(shared.epochs(), [(1, State::Running), (2, State::Running)]);
}
