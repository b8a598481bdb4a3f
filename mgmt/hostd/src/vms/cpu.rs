//! A VM's processor: what it may be on this host, what a new VM gets, what its monitor and its control group are told.

use std::collections::BTreeSet;

use keelson_api::{CpuIdentity, Fault, Problem, VmCpu};
use keelson_init_control::VmLimits;
use keelson_vmm_control::{self as vmm, MAX_HOST_CPU, cpu_list};
use keelson_vmm_cpu::{
    Definition, FeatureSet, HOST, HostCpu, Model, Topology, best_for, check_masks, definitions, find, list,
};
use uuid::Uuid;

use super::{VmDocument, Vms};
use crate::hardware;
use crate::problems::argument;

/// What a VM that says nothing has.
const USUAL_SHARES: u32 = 1000;
const MOST_SHARES: u32 = 100_000;
const FEWEST_SHARES: u32 = 10;
/// Less of a processor than this and a guest's clock suffers, in percent.
const LEAST_LIMIT: u32 = 10;

/// What is asked, understood.
#[derive(Debug)]
struct Asked {
    /// `None` is the host's own processor.
    definition: Option<&'static Definition>,
    masks: FeatureSet,
}

fn asked(cpu: &VmCpu) -> Result<Asked, Problem> {
    let mut masks = FeatureSet::default();
    for (i, name) in cpu.masks.iter().enumerate() {
        let one = check_masks([name.as_str()]).map_err(|e| {
            argument(
                format!("cpu.masks[{i}]"),
                e.to_string(),
                "`GET /host` lists this host's features, in `cpu_identity`",
            )
        })?;
        masks = masks.with(&one);
    }
    let definition = match cpu.definition.as_deref() {
        None | Some(HOST) => None,
        Some(name) => Some(definition("cpu.definition", name)?),
    };
    Ok(Asked { definition, masks })
}

/// The definition of this name, or the fault of a field.
fn definition(field: &str, name: &str) -> Result<&'static Definition, Problem> {
    find(name).map_err(|e| argument(field, e.to_string(), "give one of them"))
}

/// The definitions that a host can run, for a remedy.
fn runnable(host: &HostCpu) -> String {
    let none = FeatureSet::default();
    let names: Vec<&str> =
        definitions().iter().filter(|d| d.fits(host, &none).is_empty()).map(|d| d.name.as_str()).collect();
    if names.is_empty() { HOST.into() } else { format!("{HOST}, {}", names.join(", ")) }
}

/// Checks what a VM's processor is to be by itself: names, numbers, the arrangement of its vCPUs.
fn check_alone(cpu: &VmCpu, vcpus: u32, threads: u32) -> Result<(), Problem> {
    let number = |field: &str, value: Option<u32>, least: u32, most: u32, what: &str| match value {
        Some(n) if !(least..=most).contains(&n) => Err(argument(
            field,
            format!("{n} is no {what}"),
            &format!("give {least} to {most}, or leave it out"),
        )),
        _ => Ok(()),
    };
    number("cpu.shares", cpu.shares, FEWEST_SHARES, MOST_SHARES, "number of shares")?;
    // One processor's worth for each vCPU is all that it can use.
    let most = vcpus.saturating_mul(100);
    number("cpu.limit_percent", cpu.limit_percent, LEAST_LIMIT, most, "limit of a VM of so many vCPUs")?;
    let most = most.min(cpu.limit_percent.unwrap_or(most)).min(threads.saturating_mul(100));
    number("cpu.reservation_percent", cpu.reservation_percent, 1, most, "reservation that it could use")?;
    if let Err(e) = topology(cpu, vcpus).check(vcpus) {
        let field =
            if cpu.cores_per_socket.is_some() { "cpu.cores_per_socket" } else { "cpu.threads_per_core" };
        return Err(argument(
            field,
            e.to_string(),
            "give divisors of the number of vCPUs, or leave both out",
        ));
    }
    let lists = cpu.affinity.len();
    if lists > 1 && usize::try_from(vcpus) != Ok(lists) {
        let detail = format!("{lists} lists for {vcpus} vCPUs");
        return Err(argument("cpu.affinity", detail, "give one list for all vCPUs, or one for each"));
    }
    for (i, text) in cpu.affinity.iter().enumerate() {
        let field = || format!("cpu.affinity[{i}]");
        let last = threads.saturating_sub(1).min(MAX_HOST_CPU);
        let remedy = format!("this host has the processors 0 to {last}");
        let cpus = cpu_list(text).map_err(|why| argument(field(), why, &remedy))?;
        if let Some(missing) = cpus.iter().find(|n| **n > last) {
            return Err(argument(field(), format!("this host has no processor {missing}"), &remedy));
        }
    }
    Ok(())
}

fn topology(cpu: &VmCpu, vcpus: u32) -> Topology {
    let threads = cpu.threads_per_core.unwrap_or(1);
    let cores = cpu.cores_per_socket.unwrap_or_else(|| vcpus.checked_div(threads).unwrap_or(0));
    let in_socket = cores.saturating_mul(threads);
    Topology { sockets: vcpus.checked_div(in_socket).unwrap_or(0), cores, threads }
}

/// Checks a definition against a host, and against the host's baseline.
fn check_definition(asked: &Asked, host: Option<&HostCpu>, baseline: Option<&str>) -> Result<(), Problem> {
    const FIELD: &str = "cpu.definition";
    let cap = baseline.and_then(|name| find(name).ok());
    let Some(definition) = asked.definition else {
        return match cap {
            None => Ok(()),
            Some(cap) => Err(argument(
                FIELD,
                format!(
                    "the host's baseline is {}: a VM that sees the host's own processor is not within it",
                    cap.name
                ),
                &format!("give {}, or leave it out", cap.name),
            )),
        };
    };
    if let Some(host) = host {
        let missing = definition.fits(host, &asked.masks);
        if !missing.is_empty() {
            let detail = format!("this host cannot run {}: it lacks {}", definition.name, list(&missing));
            let remedy = format!("mask what is missing, or give one of: {}", runnable(host));
            return Err(Problem::new(Fault::NotSupported, detail).field(FIELD).remedy(remedy));
        }
    }
    if let Some(cap) = cap {
        let beyond = definition.beyond(cap, &asked.masks);
        if !beyond.is_empty() {
            let detail = format!(
                "{} goes beyond the host's baseline {}: {}",
                definition.name,
                cap.name,
                list(&beyond)
            );
            return Err(argument(FIELD, detail, &format!("give {}, or mask that", cap.name)));
        }
    }
    Ok(())
}

/// Checks a VM's processor, and says what is written down: a definition always, so that it never changes by itself.
fn settle(
    cpu: &VmCpu,
    vcpus: u32,
    threads: u32,
    host: Option<&HostCpu>,
    baseline: Option<&str>,
) -> Result<VmCpu, Problem> {
    check_alone(cpu, vcpus, threads)?;
    let mut settled = cpu.clone();
    if settled.definition.is_none() {
        let best = || host.and_then(best_for).map(|d| d.name.as_str());
        settled.definition = Some(baseline.or_else(best).unwrap_or(HOST).to_owned());
    }
    check_definition(&asked(&settled)?, host, baseline)?;
    Ok(settled)
}

impl Vms {
    /// Checks a new VM's processor, and says what is written down.
    pub(super) fn settle_cpu(&self, cpu: &VmCpu, vcpus: u32) -> Result<VmCpu, Problem> {
        let (host, baseline) = (hardware::host_cpu(), self.agent.cpu_baseline());
        settle(cpu, vcpus, hardware::cpu().threads, host.as_ref(), baseline.as_deref())
    }

    /// The same for a VM that is changed. The definition stays what it is unless another is named, and only that one has to be within
    /// the host's baseline.
    pub(super) fn resettle_cpu(&self, cpu: &VmCpu, before: &VmCpu, vcpus: u32) -> Result<VmCpu, Problem> {
        let present = before.definition.as_deref().unwrap_or(HOST);
        let definition = cpu.definition.clone().unwrap_or_else(|| present.to_owned());
        let baseline = if definition == present { None } else { self.agent.cpu_baseline() };
        let cpu = VmCpu { definition: Some(definition), ..cpu.clone() };
        settle(&cpu, vcpus, hardware::cpu().threads, hardware::host_cpu().as_ref(), baseline.as_deref())
    }

    /// That so much of the processors is not reserved yet, by VMs that run or that are `admitted` to it.
    pub(super) fn reservation_fits(
        &self,
        document: &VmDocument,
        admitted: impl Iterator<Item = Uuid>,
    ) -> Result<(), Problem> {
        let Some(wanted) = document.cpu.reservation_percent else { return Ok(()) };
        let all = hardware::cpu().threads.max(1).saturating_mul(100);
        let of = |id: Uuid| self.inventory.get(id).ok()?.document.ok()?.cpu.reservation_percent;
        let mut others: BTreeSet<Uuid> = self.units.running_vms()?.into_iter().chain(admitted).collect();
        others.remove(&document.id);
        let taken: u32 = others.into_iter().filter_map(of).fold(0, u32::saturating_add);
        if taken.saturating_add(wanted) <= all {
            return Ok(());
        }
        let detail = format!(
            "{wanted} % of a processor cannot be reserved for {}: {taken} of {all} are",
            document.name
        );
        Err(Problem::new(Fault::InsufficientResourcesFault, detail)
            .field("cpu.reservation_percent")
            .remedy("power off another VM with a reservation, or reserve less"))
    }
}

/// The processor that a VM's monitor is told. The host is looked at anew: the VM may have come from another one.
pub(super) fn machine(document: &VmDocument) -> Result<vmm::Cpu, Problem> {
    let cpu = &document.cpu;
    let asked = asked(cpu)?;
    let affinity = cpu.affinity.iter().enumerate().map(|(i, text)| {
        cpu_list(text).map_err(|why| argument(format!("cpu.affinity[{i}]"), why, "change the VM"))
    });
    let affinity = affinity.collect::<Result<_, _>>()?;
    let identity = match (asked.definition, hardware::host_cpu()) {
        (Some(definition), Some(host)) => {
            // The baseline caps new VMs; one that was made before keeps what it has.
            check_definition(&asked, Some(&host), None)?;
            let model: Model = definition.resolve(&host.vendor, &asked.masks);
            vmm::CpuIdentity::Model(Box::new(model))
        }
        (Some(definition), None) => {
            let detail =
                format!("{} cannot be shown: this host's KVM does not say what it supports", definition.name);
            return Err(Problem::new(Fault::NotSupported, detail)
                .field("cpu.definition")
                .remedy("look at the host's log"));
        }
        (None, _) => vmm::CpuIdentity::Host { masks: asked.masks },
    };
    Ok(vmm::Cpu { identity, topology: Some(topology(cpu, document.vcpus)), affinity })
}

/// What a VM's control group allows of the processors. A reservation raises the weight to what it is worth: with weights of 100 for each
/// processor that is used, a VM that reserves two has twice as much as one of the usual shares.
pub(super) fn limits(cpu: &VmCpu) -> VmLimits {
    let shares = cpu.shares.unwrap_or(USUAL_SHARES) / 10;
    VmLimits {
        cpu_weight: Some(shares.max(cpu.reservation_percent.unwrap_or(0)).clamp(1, 10_000)),
        cpu_limit_percent: cpu.limit_percent,
        ..VmLimits::default()
    }
}

/// Checks a new baseline.
pub(crate) fn check_baseline(field: &str, name: &str) -> Result<(), Problem> {
    if name == HOST {
        let detail = "`host` is another processor on each host, so it caps nothing";
        return Err(argument(field, detail, "give a definition's name, or an empty text for no baseline"));
    }
    let definition = definition(field, name)?;
    let Some(host) = hardware::host_cpu() else { return Ok(()) };
    let missing = definition.fits(&host, &FeatureSet::default());
    if missing.is_empty() {
        return Ok(());
    }
    let detail = format!("this host cannot run {name}: it lacks {}", list(&missing));
    let remedy = format!("give one of: {}", runnable(&host));
    Err(Problem::new(Fault::NotSupported, detail).field(field).remedy(remedy))
}

/// What this host's processor can show, for the API.
pub(crate) fn identity() -> Option<CpuIdentity> {
    let host = hardware::host_cpu()?;
    let none = FeatureSet::default();
    let fitting = definitions().iter().filter(|d| d.fits(&host, &none).is_empty());
    Some(CpuIdentity {
        definitions: fitting.map(|d| d.name.clone()).collect(),
        best_definition: best_for(&host).map(|d| d.name.clone()),
        features: host.features.iter().map(|f| f.name().to_owned()).collect(),
        vendor: host.vendor,
        family: host.family,
        model: host.model,
        stepping: host.stepping,
        address_width: host.address_width,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(definition: &str, vendor: &str) -> HostCpu {
        let model = find(definition).unwrap().resolve(vendor, &FeatureSet::default());
        let table = keelson_vmm_cpu::materialise(
            &model,
            &Topology::one_socket(1),
            0,
            &keelson_vmm_cpu::Platform::default(),
        );
        HostCpu::of(&table, model.features.arch_capabilities(), true)
    }

    fn cpu(change: impl FnOnce(&mut VmCpu)) -> VmCpu {
        let mut cpu = VmCpu::default();
        change(&mut cpu);
        cpu
    }

    #[test]
    fn a_new_vm_gets_the_baseline_or_the_best_of_the_host_and_keeps_what_it_names() {
        let zen3 = host("amd-zen3", "AuthenticAMD");
        let settled = |cpu: &VmCpu, host: Option<&HostCpu>, baseline| {
            settle(cpu, 1, 4, host, baseline).map(|c| c.definition.unwrap()).map_err(|e| e.to_string())
        };
        let nothing = VmCpu::default();
        assert_eq!(settled(&nothing, Some(&zen3), None).unwrap(), "amd-zen3");
        assert_eq!(settled(&nothing, Some(&zen3), Some("amd-zen1")).unwrap(), "amd-zen1");
        assert_eq!(settled(&nothing, None, None).unwrap(), "host");
        let named = cpu(|c| c.definition = Some("x86-64-v2".into()));
        assert_eq!(settled(&named, Some(&zen3), Some("amd-zen1")).unwrap(), "x86-64-v2");
        let zen2 = cpu(|c| c.definition = Some("amd-zen2".into()));
        let told = settled(&zen2, Some(&zen3), Some("amd-zen1")).unwrap_err();
        assert!(told.contains("beyond the host's baseline amd-zen1") && told.contains("rdpid"), "{told}");
        let own = cpu(|c| c.definition = Some("host".into()));
        assert!(
            settled(&own, Some(&zen3), None).is_ok() && settled(&own, Some(&zen3), Some("amd-zen1")).is_err()
        );
    }

    #[test]
    fn each_wrong_field_is_named_and_says_what_to_do() {
        let zen2 = host("amd-zen2", "AuthenticAMD");
        type Change = fn(&mut VmCpu);
        let wrong: [(&str, u16, &str, Change); 14] = [
            ("cpu.definition", 400, "there are: host, x86-64-v1", |c| c.definition = Some("zen2".into())),
            ("cpu.definition", 422, "it lacks pcid, erms", |c| c.definition = Some("amd-zen3".into())),
            ("cpu.definition", 422, "a processor of GenuineIntel", |c| {
                c.definition = Some("intel-haswell".into())
            }),
            ("cpu.masks[1]", 400, "is `avx2` meant", |c| c.masks = vec!["avx".into(), "AVX2".into()]),
            ("cpu.masks[0]", 400, "cannot be masked", |c| c.masks = vec!["sse2".into()]),
            ("cpu.cores_per_socket", 400, "are not 4 vCPUs", |c| c.cores_per_socket = Some(3)),
            ("cpu.threads_per_core", 400, "are not 4 vCPUs", |c| c.threads_per_core = Some(0)),
            ("cpu.affinity", 400, "2 lists for 4 vCPUs", |c| c.affinity = vec!["0".into(), "1".into()]),
            ("cpu.affinity[0]", 400, "no list of host processors", |c| c.affinity = vec!["first".into()]),
            ("cpu.affinity[0]", 400, "no processor 9", |c| c.affinity = vec!["0-9,9".into()]),
            ("cpu.shares", 400, "0 is no number", |c| c.shares = Some(0)),
            ("cpu.limit_percent", 400, "401 is no limit", |c| c.limit_percent = Some(401)),
            ("cpu.reservation_percent", 400, "401 is no reservation", |c| c.reservation_percent = Some(401)),
            ("cpu.reservation_percent", 400, "60 is no reservation", |c| {
                (c.limit_percent, c.reservation_percent) = (Some(50), Some(60));
            }),
        ];
        for (field, status, said, change) in wrong {
            let told = settle(&cpu(change), 4, 9, Some(&zen2), None).unwrap_err();
            assert_eq!((told.field.as_deref(), told.status), (Some(field), status), "{told}");
            assert!(told.to_string().contains(said) && told.remedy.is_some(), "{told}");
        }
        // What is lacking can be masked.
        let masked = cpu(|c| {
            c.definition = Some("amd-zen3".into());
            let lacks = find("amd-zen3").unwrap().features.without(&zen2.features);
            c.masks = lacks.iter().map(|f| f.name().to_owned()).collect();
        });
        assert!(settle(&masked, 4, 9, Some(&zen2), None).is_ok());
    }

    #[test]
    fn shares_limit_and_reservation_become_the_groups_weight_and_maximum() {
        let told = |change: fn(&mut VmCpu)| {
            let limits = limits(&cpu(change));
            (limits.cpu_weight, limits.cpu_limit_percent)
        };
        assert_eq!(told(|_| ()), (Some(100), None));
        assert_eq!(told(|c| c.shares = Some(2000)), (Some(200), None));
        assert_eq!(told(|c| (c.shares, c.limit_percent) = (Some(10), Some(150))), (Some(1), Some(150)));
        assert_eq!(told(|c| c.reservation_percent = Some(250)), (Some(250), None));
    }

    proptest::proptest! {
        #[test]
        fn no_request_makes_it_panic(
            name in "\\PC{0,20}", mask in "\\PC{0,20}", list in "[0-9,-]{0,12}",
            numbers in proptest::prelude::any::<[Option<u32>; 5]>(), vcpus in 1u32..255,
        ) {
            let [cores_per_socket, threads_per_core, shares, limit_percent, reservation_percent] = numbers;
            let cpu = VmCpu {
                definition: Some(name), masks: vec![mask], affinity: vec![list],
                cores_per_socket, threads_per_core, shares, limit_percent, reservation_percent,
            };
            drop(settle(&cpu, vcpus, 4, None, Some("x86-64-v2")));
            limits(&cpu);
        }
    }
}
