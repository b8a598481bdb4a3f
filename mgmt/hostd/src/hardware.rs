//! The machine below: processors, memory, model, and whether it can run VMs.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::sync::OnceLock;

use keelson_api::{Cpu, Fault, KvmStatus, Problem};
use keelson_vmm_cpu::{HostCpu, Supported};

/// Memory that VMs do not get: the image in RAM, the daemons, the kernel's own.
pub const HOST_RESERVE_MIB: u64 = 256;

const KVM: &str = "/dev/kvm";

/// Why there is no KVM, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoKvm {
    /// Why.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

impl NoKvm {
    /// The fault of a VM that cannot be powered on.
    pub fn problem(&self, name: &str) -> Problem {
        Problem::new(Fault::NotSupported, format!("{name} cannot be powered on: {}", self.reason))
            .remedy(self.remedy)
    }
}

/// Opens KVM for a VM.
pub fn open_kvm() -> Result<File, NoKvm> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(KVM)
        .map_err(|e| why_no_kvm(&e, &fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
}

fn why_no_kvm(error: &std::io::Error, cpuinfo: &str) -> NoKvm {
    let extension = flags(cpuinfo).any(|f| f == "vmx" || f == "svm");
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => NoKvm {
            reason: format!("the host agent may not open {KVM}"),
            remedy: "restart the host: init gives it to the host agent's user",
        },
        _ if !extension => NoKvm {
            reason: "the processor offers no virtualization extension (VT-x or AMD-V)".into(),
            remedy: "switch on Intel VT-x or AMD-V (SVM) in the firmware setup, then power the server off and on",
        },
        std::io::ErrorKind::NotFound => NoKvm {
            reason: format!("there is no {KVM}: the kernel's module kvm_intel or kvm_amd is not loaded"),
            remedy: "look at the kernel's lines in the host's log",
        },
        _ => NoKvm {
            reason: format!("{KVM} cannot be opened: {error}"),
            remedy: "look at the kernel's lines in the host's log",
        },
    }
}

/// Whether this host can run VMs.
pub fn kvm() -> KvmStatus {
    if let Err(no) = open_kvm() {
        return KvmStatus {
            available: false,
            reason: Some(format!("{}; {}", no.reason, no.remedy)),
            max_vcpus: 0,
        };
    }
    match kvm_ioctls::Kvm::new() {
        Ok(kvm) if kvm.get_api_version() == 12 => {
            let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
            KvmStatus { available: true, reason: None, max_vcpus }
        }
        Ok(kvm) => {
            let reason = format!(
                "{KVM} speaks the interface {}, not 12; use the kernel of the image",
                kvm.get_api_version()
            );
            KvmStatus { available: false, reason: Some(reason), max_vcpus: 0 }
        }
        Err(e) => KvmStatus {
            available: false,
            reason: Some(format!("{KVM} does not answer: {e}; look at the kernel's lines in the host's log")),
            max_vcpus: 0,
        },
    }
}

/// What KVM can show to guests; `None` where it does not answer. It is asked each time: its module may come late.
pub fn host_cpu() -> Option<HostCpu> {
    Supported::read(&kvm_ioctls::Kvm::new().ok()?).ok().map(|supported| supported.host())
}

/// The processors. They stay what they were when first asked.
pub fn cpu() -> &'static Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| parse_cpu(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
}

/// A value of `/proc/cpuinfo` or `/proc/meminfo`: `key : value`.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = line.split_once(':')?;
    (name.trim() == key).then(|| value.trim())
}

fn flags(cpuinfo: &str) -> impl Iterator<Item = &str> {
    cpuinfo.lines().find_map(|l| value(l, "flags")).unwrap_or_default().split_whitespace()
}

fn parse_cpu(cpuinfo: &str) -> Cpu {
    let (mut sockets, mut cores, mut threads) = (BTreeSet::new(), BTreeSet::new(), 0u32);
    let mut model = String::new();
    for processor in cpuinfo.split("\n\n") {
        let of = |key| processor.lines().find_map(|l| value(l, key));
        let Some(number) = of("processor") else { continue };
        threads += 1;
        if let (true, Some(name)) = (model.is_empty(), of("model name")) {
            model = name.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        // A kernel that tells no topology (a virtual processor) is one core of one socket each.
        let socket = of("physical id").unwrap_or("0");
        sockets.insert(socket);
        cores.insert((socket, of("core id").unwrap_or(number)));
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Cpu { model, sockets: count(sockets.len()), cores: count(cores.len()), threads }
}

/// What the kernel manages, and what could be given away now, in bytes.
pub fn memory() -> (u64, u64) {
    parse_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn parse_memory(meminfo: &str) -> (u64, u64) {
    let of = |key| {
        let kib = meminfo.lines().find_map(|l| value(l, key)?.strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    };
    (of("MemTotal"), of("MemAvailable"))
}

/// The server's maker and model, as its firmware says.
pub fn model() -> Option<String> {
    static MODEL: OnceLock<Option<String>> = OnceLock::new();
    MODEL
        .get_or_init(|| {
            let read = |name: &str| {
                fs::read_to_string(format!("/sys/class/dmi/id/{name}"))
                    .ok()
                    .map(|t| t.trim().to_owned())
                    .filter(|t| said(t))
            };
            let parts: Vec<String> =
                [read("sys_vendor"), read("product_name")].into_iter().flatten().collect();
            (!parts.is_empty()).then(|| parts.join(" "))
        })
        .clone()
}

/// Whether a firmware's text says something: many are left as the board's maker found them.
fn said(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    !text.is_empty()
        && ![
            "to be filled by o.e.m.",
            "default string",
            "not specified",
            "system manufacturer",
            "system product name",
            "none",
            "unknown",
        ]
        .contains(&lower.as_str())
}

/// Time since the kernel started, in seconds.
pub fn uptime_s() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0)
}

/// The running kernel's release.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// This boot's id, as the kernel says it.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some  CPU @ 2 GHz\nphysical id\t: 0\ncore id\t: 0\nflags\t\t: fpu svm\n\n\
                           processor\t: 1\nmodel name\t: Some  CPU @ 2 GHz\nphysical id\t: 0\ncore id\t: 0\n\n\
                           processor\t: 2\nmodel name\t: Some  CPU @ 2 GHz\nphysical id\t: 1\ncore id\t: 0\n";

    #[test]
    fn sockets_cores_and_threads_are_counted() {
        let cpu = parse_cpu(CPUINFO);
        assert_eq!((cpu.model.as_str(), cpu.sockets, cpu.cores, cpu.threads), ("Some CPU @ 2 GHz", 2, 2, 3));
        let cpu = parse_cpu("processor : 0\n\nprocessor : 1\n");
        assert_eq!((cpu.sockets, cpu.cores, cpu.threads), (1, 2, 2));
    }

    #[test]
    fn memory_is_in_bytes() {
        assert_eq!(
            parse_memory("MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n"),
            (2 << 20, 1 << 20)
        );
        assert_eq!(parse_memory("nonsense"), (0, 0));
    }

    #[test]
    fn each_reason_for_no_kvm_has_its_own_words() {
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert!(why_no_kvm(&missing, "flags : fpu").remedy.contains("firmware"));
        assert!(why_no_kvm(&missing, CPUINFO).reason.contains("module"));
        assert!(
            why_no_kvm(&std::io::ErrorKind::PermissionDenied.into(), CPUINFO).reason.contains("may not open")
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,300}") {
            parse_cpu(&text);
            parse_memory(&text);
        }
    }
}
