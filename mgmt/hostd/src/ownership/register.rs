//! A VM's register on its datastore: reading owner files, and doing the steps of a take.

use std::io::{self, Write};

use nix::errno::Errno;
use uuid::Uuid;

use super::epoch::PREFIX;
use super::{Answer, Damage, Epoch, Highest, MAX_RECORD, Reading, Record, Step, Take, Trouble};
use crate::datastores::Directory;

/// How the names of temporary files begin: hidden from clients, and told apart by host and attempt.
const TEMPORARY: &str = ".owner-";

fn temporary(host: Uuid, attempt: Uuid) -> String {
    format!("{TEMPORARY}{host}-{attempt}")
}

fn epochs(directory: &Directory) -> io::Result<Vec<Epoch>> {
    let mut epochs: Vec<Epoch> =
        directory.names_with(PREFIX)?.iter().filter_map(|name| Epoch::of_file(name)).collect();
    epochs.sort_unstable();
    Ok(epochs)
}

/// The record of an epoch; `None` when there is no such file.
pub fn read(directory: &Directory, epoch: Epoch) -> io::Result<Option<Reading>> {
    let name = epoch.file_name();
    let bytes = match directory.read(&name, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(e) => {
            return match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) => Ok(None),
                Some(Errno::EFBIG) => Ok(Some(Err(Damage::TooLong))),
                Some(Errno::ELOOP | Errno::EINVAL | Errno::ENXIO) => Ok(Some(Err(Damage::NotAFile))),
                _ => Err(e),
            };
        }
    };
    Ok(Some(Record::decode(&bytes)))
}

/// The highest epoch.
pub fn highest(directory: &Directory) -> io::Result<Highest> {
    let Some(epoch) = epochs(directory)?.pop() else { return Ok(None) };
    // Owner files stay while the VM exists, so a listed one that is not there means that the VM is being deleted.
    let reading = read(directory, epoch)?.ok_or(Errno::ENOENT)?;
    Ok(Some((epoch, reading)))
}

/// The last `most` epochs, the newest first.
pub fn history(directory: &Directory, most: usize) -> io::Result<Vec<(Epoch, Reading)>> {
    let mut history = Vec::new();
    for epoch in epochs(directory)?.into_iter().rev().take(most) {
        history.extend(read(directory, epoch)?.map(|reading| (epoch, reading)));
    }
    Ok(history)
}

/// Whether a file of that name belongs to the register.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) || name.starts_with(TEMPORARY)
}

/// Removes all owner files and what takes left. Only for a VM that does not exist any more.
pub fn remove(directory: &Directory) -> io::Result<()> {
    for name in directory.names_with(PREFIX)?.iter().chain(&directory.names_with(TEMPORARY)?) {
        directory.remove(name)?;
    }
    Ok(())
}

/// Does the present step of a take.
pub(super) fn perform(directory: &Directory, take: &Take) -> Answer {
    let record = take.record();
    let temporary = temporary(take.taker(), record.attempt);
    let done = |result: io::Result<()>| match result {
        Ok(()) => Answer::Done,
        Err(e) => Answer::Failed(Trouble::of(&e)),
    };
    let seen = || match highest(directory) {
        Ok(highest) => Answer::Highest(highest),
        Err(e) => Answer::Failed(Trouble::of(&e)),
    };
    match take.step() {
        Step::Look => {
            forget_earlier(directory, take.taker());
            seen()
        }
        Step::Write => done((|| {
            directory.remove(&temporary)?;
            let mut file = directory.create(&temporary)?;
            file.write_all(&record.encode())?;
            file.sync_all()
        })()),
        Step::Link(epoch) => match directory.link(&temporary, &epoch.file_name()) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Answer::Exists,
            other => done(other),
        },
        Step::Read(epoch) => match read(directory, epoch) {
            Ok(reading) => Answer::Read(reading),
            Err(e) => Answer::Failed(Trouble::of(&e)),
        },
        Step::Tidy => done(directory.remove(&temporary)),
        Step::LookAgain => seen(),
        Step::Flush => done(directory.sync()),
    }
}

/// Removes what a take has left. A failure leaves a small hidden file, which the next take removes.
pub(super) fn tidy(directory: &Directory, take: &Take) {
    let _ = directory.remove(&temporary(take.taker(), take.record().attempt));
}

/// Removes the temporary files of this host's earlier takes, which ended with their host agent: at most one take of a VM is at
/// work on a host. A link of theirs that is still under way loses its file, or lands and is seen as an owner of its own.
fn forget_earlier(directory: &Directory, host: Uuid) {
    let ours = format!("{TEMPORARY}{host}-");
    for name in directory.names_with(&ours).unwrap_or_default() {
        let _ = directory.remove(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::{Claim, Outcome, Progress, State};
    use super::*;
    use proptest::prelude::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::root(dir.path()).unwrap();
        (dir, directory)
    }

    fn finish(directory: &Directory, mut take: Take) -> Outcome {
        loop {
            let answer = perform(directory, &take);
            take = match take.answered(answer) {
                Progress::On(take) | Progress::Open(take) => take,
                Progress::Ended(outcome) => return outcome,
            };
        }
    }

    fn take(directory: &Directory, host: u128, state: State, attempt: u128) -> Outcome {
        finish(directory, Take::new(Uuid::from_u128(host), record(host, state, attempt), Claim::Own))
    }

    #[test]
    fn a_vm_goes_from_host_to_host_and_its_files_are_its_history() {
        let (dir, directory) = directory();
        assert!(matches!(take(&directory, 1, State::Running, 1), Outcome::Won(_)));
        assert!(matches!(take(&directory, 2, State::Running, 2), Outcome::Refused(_)));
        assert!(matches!(take(&directory, 1, State::Off, 3), Outcome::Won(_)));
        std::fs::write(dir.path().join(format!("{TEMPORARY}{}-left", Uuid::from_u128(2))), "cut").unwrap();
        assert!(matches!(take(&directory, 2, State::Running, 4), Outcome::Won(p) if p.epoch().number() == 3));
        let told = history(&directory, 9).unwrap();
        let told: Vec<_> =
            told.into_iter().map(|(e, r)| (e.number(), r.unwrap().host_id.as_u128())).collect();
        assert_eq!(told, [(3, 2), (2, 1), (1, 1)]);
        assert_eq!(history(&directory, 1).unwrap().len(), 1);
        assert_eq!(directory.names().unwrap(), ["owner.1", "owner.2", "owner.3"]);
        remove(&directory).unwrap();
        assert!(directory.names().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_record_is_damage_and_never_off() {
        let (dir, directory) = directory();
        assert!(matches!(take(&directory, 1, State::Running, 1), Outcome::Won(_)));
        assert!(matches!(take(&directory, 1, State::Off, 2), Outcome::Won(_)));
        let off = std::fs::read(dir.path().join("owner.2")).unwrap();
        let at = dir.path().join("owner.3");
        let hostile: [&dyn Fn(); 6] = [
            &|| std::fs::write(&at, "").unwrap(),
            &|| std::fs::write(&at, &off[..off.len() - 1]).unwrap(),
            &|| std::fs::write(&at, vec![b'x'; 1 << 20]).unwrap(),
            &|| std::os::unix::fs::symlink("owner.2", &at).unwrap(),
            &|| std::fs::create_dir(&at).unwrap(),
            &|| nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        ];
        for (i, make) in hostile.iter().enumerate() {
            make();
            let (epoch, reading) = highest(&directory).unwrap().unwrap();
            assert!(epoch.number() == 3 && reading.is_err(), "{i}: {reading:?}");
            let refused = take(&directory, 1, State::Running, 3);
            assert!(
                matches!(refused, Outcome::Refused(super::super::Refusal::Damaged { .. })),
                "{i}: {refused:?}"
            );
            let _ = std::fs::remove_file(&at).or_else(|_| std::fs::remove_dir(&at));
        }
        // Names that no host writes are no epochs.
        for name in ["owner.03", "owner.x", "owner.3.bak", "owner."] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert!(matches!(take(&directory, 1, State::Running, 4), Outcome::Won(p) if p.epoch().number() == 3));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn random_names_and_contents_never_panic(
            files in prop::collection::vec(("(owner\\.)?[0-9a-z.]{1,20}", prop::collection::vec(any::<u8>(), 0..80)), 0..5),
        ) {
            let (dir, directory) = directory();
            for (name, content) in &files {
                let _ = std::fs::write(dir.path().join(name), content);
            }
            let epochs = history(&directory, 10).unwrap();
            prop_assert!(epochs.iter().all(|(_, reading)| reading.is_err()));
            prop_assert!(matches!(take(&directory, 1, State::Running, 1), Outcome::Won(_)) == epochs.is_empty());
        }
    }
}
