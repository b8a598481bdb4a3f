//! The host as the API shows it: facts of the machine, of init and of netd, and what a person should know.

use keelson_api::{Condition, Fault, Host, HostUpdate, Memory, Problem, Step};
use keelson_init_control::{Boot, Client, Request, check_hostname};

use crate::hardware;
use crate::problems::argument;
use crate::services::Services;
use crate::store::StoreError;

/// The condition of a host that cannot run VMs; init has it too.
const KVM_MISSING: &str = "kvm-missing";
/// Below this share of the datastore's size it counts as full, in parts of a hundred.
const FULL_PERCENT: u64 = 2;
/// The longest host name that the kernel takes, in bytes.
const MAX_HOSTNAME: usize = 63;

impl Services {
    /// The host. What cannot be asked (init, netd) is missing from it and told as a condition.
    pub fn host(&self) -> Host {
        let boot = self.units.ask("the boot could not be read", Client::boot);
        let network = self.netd.network();
        let (total_bytes, available_bytes) = hardware::memory();
        let kvm = hardware::kvm();
        let mut conditions = Vec::new();
        if let Ok(boot) = &boot {
            of_boot(boot, &mut conditions);
        }
        if let Some(why) =
            boot.as_ref().err().map(|problem| problem.detail.clone()).or_else(|| self.units.trouble())
        {
            let message = format!("init cannot be heard, so VMs can be neither started nor stopped: {why}");
            conditions.push(condition(
                "init-unreachable",
                &message,
                "it is tried again all the time; restart the host if it stays so",
            ));
        }
        match &network {
            Ok(network) => conditions.extend(network.conditions.iter().cloned()),
            Err(problem) => conditions.push(condition(
                "netd-unreachable",
                &problem.detail,
                "init restarts the network daemon; look at the host's log",
            )),
        }
        if let Err(no) = hardware::open_kvm()
            && !self.units.drivers_loading()
        {
            conditions.push(condition(
                KVM_MISSING,
                &format!("this host cannot run VMs: {}", no.reason),
                no.remedy,
            ));
        }
        self.of_datastores(&mut conditions);
        for (directory, problem) in self.vms.inaccessible() {
            let message = format!("the VM in `{directory}` cannot be used: {}", problem.detail);
            conditions.push(condition(
                "vm-inaccessible",
                &message,
                problem.remedy.as_deref().unwrap_or("restore its files"),
            ));
        }
        conditions.extend(self.agent.conditions.all());
        let (vmotion_ready, vmotion_reason, nics) = match network {
            Ok(network) => (network.vmotion_ready, network.vmotion_reason, network.nics),
            Err(problem) => (false, Some(problem.detail), Vec::new()),
        };
        let boot = boot.ok();
        Host {
            identity: self.agent.identity(),
            boot_id: boot.as_ref().map_or_else(hardware::boot_id, |b| b.boot_id.clone()),
            uptime_s: hardware::uptime_s(),
            kernel: hardware::kernel(),
            hardware: hardware::model(),
            cpu: hardware::cpu().clone(),
            cpu_identity: crate::vms::cpu_identity(),
            cpu_baseline: self.agent.cpu_baseline(),
            memory: Memory {
                total_bytes,
                available_bytes,
                reserved_for_vms_bytes: self.vms.reserved_bytes(),
            },
            kvm,
            nics,
            persistent: boot.as_ref().map_or_else(
                || self.datastores.all().iter().any(|d| d.shown().kind == "local"),
                |b| b.state.is_some(),
            ),
            vmotion_ready,
            vmotion_reason,
            conditions,
            boot_timeline: boot
                .map(|b| b.timeline.into_iter().map(|s| Step { name: s.name, at_ms: s.at_ms }).collect())
                .unwrap_or_default(),
        }
    }

    fn of_datastores(&self, conditions: &mut Vec<Condition>) {
        for store in self.datastores.all() {
            match store.space() {
                Ok(space) if space.free <= space.capacity / 100 * FULL_PERCENT => {
                    let message =
                        format!("the datastore {} is full: {} bytes are free", store.name(), space.free);
                    conditions.push(condition(
                        "state-full",
                        &message,
                        "delete files that are not needed, or move VMs away",
                    ));
                }
                Ok(_) => {}
                Err(problem) => conditions.push(condition(
                    "datastore-inaccessible",
                    &problem.detail,
                    "look at the host's log",
                )),
            }
        }
    }

    /// Changes the host.
    pub fn change_host(&self, update: &HostUpdate) -> Result<Host, Problem> {
        let baseline = update.cpu_baseline.as_deref().map(baseline).transpose()?;
        if let Some(name) = &update.hostname {
            const REMEDY: &str = "give letters, digits and inner hyphens, at most 63 characters, such as host1 or host1.example";
            check_hostname(name).map_err(|why| {
                argument("hostname", format!("`{name}` cannot be the host's name: {why}"), REMEDY)
            })?;
            if name.len() > MAX_HOSTNAME {
                return Err(argument(
                    "hostname",
                    format!("the name is longer than {MAX_HOSTNAME} bytes"),
                    REMEDY,
                ));
            }
            self.agent.set_hostname(name).map_err(not_saved("the host's name"))?;
            // Saved, so it comes into force at the next boot at the latest; a host whose init is not there keeps its old one until then.
            self.units.tell(
                "the host's name is saved, but not in force",
                &Request::SetHostname { name: name.clone() },
            )?;
        }
        if let Some(baseline) = baseline {
            self.agent.set_cpu_baseline(baseline).map_err(not_saved("the CPU baseline"))?;
        }
        Ok(self.host())
    }
}

/// The baseline that a request names; an empty text is none. One that this host cannot run would leave it without new VMs.
fn baseline(name: &str) -> Result<Option<String>, Problem> {
    if name.is_empty() {
        return Ok(None);
    }
    crate::vms::check_baseline("cpu_baseline", name).map(|()| Some(name.to_owned()))
}

fn not_saved(what: &'static str) -> impl FnOnce(StoreError) -> Problem {
    move |e| {
        let fault = if e.is_no_space() { Fault::NoDiskSpace } else { Fault::SystemError };
        let why = keelson_init_control::logging::chain(&e);
        Problem::new(fault, format!("{what} was not saved: {why}"))
            .remedy("free space on the state partition, or repair it")
    }
}

fn condition(code: &str, message: &str, remedy: &str) -> Condition {
    Condition { code: code.into(), message: message.into(), remedy: remedy.into() }
}

fn of_boot(boot: &Boot, conditions: &mut Vec<Condition>) {
    // Whether there is KVM is looked at now: it may have come, or gone, since the boot.
    let problems = boot.problems.iter().filter(|p| p.code != KVM_MISSING);
    conditions.extend(problems.map(|p| condition(&p.code, &p.message, &p.remedy)));
    let remedy = "correct it on the kernel command line or in keelson.conf on the EFI system partition";
    conditions.extend(boot.word_errors.iter().map(|e| condition("word-ignored", &e.to_string(), remedy)));
}
