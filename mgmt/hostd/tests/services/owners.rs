//! Whose a VM is, through the life of VMs, host agents and hosts: each run is between two epochs, and what another host owns is left
//! alone.

use keelson_api::{EpochCause, OwnerState, PowerState, TaskState, Vm, VmEpoch};
use keelson_hostd::ownership::{Cause, Record, State};
use keelson_init_control::Boot;
use serde_json::json;
use uuid::Uuid;

use crate::fake_init::FakeInit;
use crate::host::{Whole, boot, spec};
use crate::http;

impl Whole {
    fn history(&self, vm: &Vm) -> Vec<VmEpoch> {
        self.get(&format!("/vms/{}/history", vm.id)).read()
    }

    /// The latest epoch: its number, state and note.
    fn latest(&self, vm: &Vm) -> (u64, OwnerState, String) {
        let latest = self.history(vm).into_iter().next().unwrap();
        (latest.epoch, latest.state, latest.note.unwrap_or_default())
    }

    fn await_latest(&self, vm: &Vm, epoch: u64) -> String {
        self.until("the epoch is not taken", || self.latest(vm).0 == epoch);
        self.latest(vm).2
    }

    /// Another host, which shares the datastore, takes an epoch.
    fn another_host_takes(&self, vm: &Vm, epoch: u64, state: State) -> Uuid {
        let host_id = Uuid::new_v4();
        self.takes(vm, epoch, state, host_id, "another");
        host_id
    }

    fn takes(&self, vm: &Vm, epoch: u64, state: State, host_id: Uuid, boot_id: &str) {
        let record = Record {
            host_id,
            hostname: "esx2".into(),
            boot_id: boot_id.into(),
            state,
            attempt: Uuid::new_v4(),
            when: jiff::Timestamp::now(),
            cause: Cause::PowerOn,
            note: None,
        };
        self.write_epoch(vm, epoch, &record.encode());
    }

    fn write_epoch(&self, vm: &Vm, epoch: u64, bytes: &[u8]) {
        std::fs::write(self.datastore().join(&vm.name).join(format!("owner.{epoch}")), bytes).unwrap();
    }

    fn force(&self, vm: &Vm) -> http::Answer {
        self.send("POST", &format!("/vms/{}/power", vm.id), &json!({ "action": "on", "force": true }))
    }
}

#[test]
fn each_run_stands_between_two_epochs() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    assert!(vm.owner.is_none() && host.history(&vm).is_empty());
    host.succeed(&host.power(vm.id, "on"));
    let owner = host.vm(vm.id).owner.unwrap();
    let identity = host.get("/identity").json();
    assert_eq!((owner.epoch, owner.state, owner.cause), (1, OwnerState::Running, Some(EpochCause::PowerOn)));
    assert_eq!(identity["host_id"], owner.host_id.unwrap().to_string());
    assert_eq!(identity["hostname"], owner.hostname.unwrap());
    for action in ["pause", "resume", "reset"] {
        host.succeed(&host.power(vm.id, action));
    }
    assert_eq!(host.latest(&vm).0, 1);

    host.succeed(&host.power(vm.id, "off"));
    assert_eq!(host.latest(&vm), (2, OwnerState::Off, "It was powered off.".into()));
    host.succeed(&host.power(vm.id, "on"));
    host.succeed(&host.power(vm.id, "shutdown"));
    assert_eq!(host.latest(&vm), (4, OwnerState::Off, "The guest switched itself off.".into()));
    host.succeed(&host.power(vm.id, "on"));
    host.init.monitor(vm.id).end(-9, None);
    host.init.wait_empty();
    assert!(host.await_latest(&vm, 6).contains("signal 9"));

    // A power-on that fails after it has taken the VM gives it up again.
    host.init.refuse(true);
    assert_eq!(host.wait(&host.power(vm.id, "on")).state, TaskState::Error);
    assert!(host.await_latest(&vm, 8).contains("this test says no"));
    host.init.refuse(false);
    let numbers: Vec<u64> = host.history(&vm).iter().map(|e| e.epoch).collect();
    assert_eq!(numbers, [8, 7, 6, 5, 4, 3, 2, 1]);
    let last: Vec<VmEpoch> = host.get(&format!("/vms/{}/history?max=1", vm.id)).read();
    assert_eq!((last.len(), last[0].epoch), (1, 8));
    for wrong in ["max=0", "max=1001", "max=x", "min=1"] {
        assert_eq!(host.get(&format!("/vms/{}/history?{wrong}", vm.id)).status, 400, "{wrong}");
    }
    let odd = host.send("POST", &format!("/vms/{}/power", vm.id), &json!({ "action": "off", "force": true }));
    assert_eq!((odd.status, odd.fault().1.as_str()), (400, "force"));

    // A client cannot touch the records, and they go with the VM.
    for (method, body) in [("PUT", b"x".as_slice()), ("DELETE", b"")] {
        let answer = http::send(&host.socket(), method, "/datastores/datastore1/files/web/owner.8", body);
        assert_eq!(answer.fault().0, "FileInUse");
    }
    host.succeed(&http::send(&host.socket(), "DELETE", &format!("/vms/{}", vm.id), b""));
    assert!(!host.datastore().join("web").exists());
}

#[test]
fn a_deletion_that_was_cut_off_before_the_records_went_is_finished() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    host.succeed(&host.power(vm.id, "on"));
    host.succeed(&host.power(vm.id, "off"));
    host.host.kill_hostd();
    for name in ["vm.toml", "console.log", "last-run.toml"] {
        std::fs::remove_file(host.datastore().join("web").join(name)).unwrap();
    }
    host.host.start_hostd();
    host.succeed(&http::send(&host.socket(), "DELETE", &format!("/vms/{}", vm.id), b""));
    assert!(!host.datastore().join("web").exists());
    assert_eq!(host.get(&format!("/vms/{}", vm.id)).status, 404);
}

#[test]
fn a_killed_host_agent_and_a_host_that_went_down_are_put_right() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    let other = host.create(&spec("other"));
    host.succeed(&host.power(vm.id, "on"));
    host.succeed(&host.power(other.id, "on"));
    host.host.kill_hostd();
    host.init.monitor(other.id).end(0, None);
    host.host.start_hostd();
    assert_eq!(host.await_latest(&other, 2), "The guest switched itself off.");
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOn);
    assert_eq!(host.latest(&vm).0, 1, "a run goes on in its epoch");

    // The host goes down: the next init has another boot, and no units.
    host.host.kill_hostd();
    let next = Boot { boot_id: "22222222-2222-4222-8222-222222222222".into(), ..boot() };
    std::fs::remove_file(host.run().join("init.sock")).unwrap();
    std::fs::remove_dir_all(host.run().join("vm")).unwrap();
    host.init = FakeInit::start(&host.run(), next);
    host.host.start_hostd();
    assert_eq!(host.await_latest(&vm, 2), "The host went down while it ran.");
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOff);
    host.succeed(&host.power(vm.id, "on"));
    assert_eq!(host.latest(&vm).0, 3);
}

#[test]
fn a_host_agent_that_died_between_taking_and_starting_gives_the_vm_up() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    let host_id = host.get("/identity").json()["host_id"].as_str().unwrap().parse().unwrap();
    host.host.kill_hostd();
    host.takes(&vm, 1, State::Running, host_id, &boot().boot_id);
    host.host.start_hostd();
    assert!(host.await_latest(&vm, 2).contains("not started"));
    host.succeed(&host.power(vm.id, "on"));
    assert_eq!(host.latest(&vm).0, 3);
}

#[test]
fn a_vm_of_which_it_is_not_known_whether_it_was_started_is_ended_before_it_is_given_up() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    host.init.deny(true);
    let task = host.wait(&host.power(vm.id, "on"));
    assert!(task.state == TaskState::Error && task.message.contains("denies it"), "{task:?}");
    host.init.wait_empty();
    assert!(host.await_latest(&vm, 2).contains("signal 9"));
    assert_eq!(host.vm(vm.id).power_state, PowerState::PoweredOff);
    host.init.deny(false);
    host.succeed(&host.power(vm.id, "on"));
}

#[test]
fn what_another_host_owns_is_left_alone_until_someone_claims_that_it_is_off() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    let owner = host.another_host_takes(&vm, 1, State::Running);
    let shown = host.vm(vm.id);
    assert_eq!((shown.power_state, shown.owner.unwrap().host_id), (PowerState::Elsewhere, Some(owner)));
    let path = format!("/vms/{}", vm.id);
    for answer in [
        host.power(vm.id, "on"),
        host.send("PATCH", &path, &json!({ "memory_mib": 32 })),
        http::send(&host.socket(), "DELETE", &path, b""),
    ] {
        assert_eq!((answer.status, answer.fault().0.as_str()), (409, "OwnedByAnotherHost"));
        let said = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(
            said.contains("esx2") && said.contains(&owner.to_string()) && said.contains("force"),
            "{said}"
        );
    }
    assert_eq!(host.power(vm.id, "off").fault().0, "InvalidPowerState");
    let used = http::send(&host.socket(), "PUT", "/datastores/datastore1/files/vmlinuz", b"x");
    assert_eq!(used.fault().0, "FileInUse", "its kernel is in use there");
    assert_eq!(host.history(&vm).len(), 1);

    host.succeed(&host.force(&vm));
    let latest = host.history(&vm).remove(0);
    assert_eq!((latest.epoch, latest.cause), (2, Some(EpochCause::Forced)));
    assert!(latest.note.unwrap().contains("root"));
    host.succeed(&host.power(vm.id, "off"));

    // Off is anybody's, and where nobody is overruled nothing is forced.
    host.another_host_takes(&vm, 4, State::Running);
    host.another_host_takes(&vm, 5, State::Off);
    host.succeed(&host.force(&vm));
    assert_eq!(host.history(&vm)[0].cause, Some(EpochCause::PowerOn));
}

#[test]
fn a_damaged_record_is_a_fault_of_its_own_and_never_off() {
    let Some(host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    host.succeed(&host.power(vm.id, "on"));
    host.succeed(&host.power(vm.id, "off"));
    host.write_epoch(&vm, 3, b"half a rec");
    assert_eq!(host.latest(&vm).1, OwnerState::Unreadable);
    let path = format!("/vms/{}", vm.id);
    for answer in [host.power(vm.id, "on"), http::send(&host.socket(), "DELETE", &path, b"")] {
        assert_eq!((answer.status, answer.fault().0.as_str()), (409, "OwnerRecordDamaged"));
    }
    host.succeed(&host.force(&vm));
    assert_eq!(host.latest(&vm).0, 4);
}

#[test]
fn a_copy_that_was_taken_over_is_ended_and_says_so() {
    let Some(mut host) = Whole::start_with_kvm() else { return };
    let vm = host.create(&spec("web"));
    host.succeed(&host.power(vm.id, "on"));
    host.host.kill_hostd();
    let owner = host.another_host_takes(&vm, 2, State::Running);
    host.host.start_hostd();
    host.init.wait_empty();
    let shown = host.vm(vm.id);
    assert_eq!((shown.power_state, shown.owner.unwrap().host_id), (PowerState::Elsewhere, Some(owner)));
    let exit = shown.last_exit.unwrap();
    assert!(exit.contains("esx2") && exit.contains("taken it over"), "{exit}");
    assert_eq!(host.history(&vm).len(), 2, "an epoch of another host is not ended by this one");
}
