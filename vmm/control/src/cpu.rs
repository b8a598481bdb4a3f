//! The processor part of a machine's description.

use keelson_vmm_cpu::{FeatureSet, Model, Topology};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// The highest number of a host processor that a vCPU can be pinned to (CPU_SETSIZE of glibc, less one).
pub const MAX_HOST_CPU: u32 = 1023;

/// What the guest sees of its processor, and where its vCPUs run. The default is the host's processor in one socket, anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// What it is.
    #[serde(default)]
    pub identity: CpuIdentity,
    /// How the vCPUs are arranged; one socket of single-threaded cores when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// The host processors that each vCPU may run on: none is anywhere, one list is for all vCPUs, else there is one list each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub affinity: Vec<Vec<u32>>,
}

/// What a guest's processor is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuIdentity {
    /// The host's, as its KVM offers it.
    Host {
        /// Less these features, and what needs them.
        #[serde(default)]
        masks: FeatureSet,
    },
    /// Exactly this, whatever else the host has. The host must have all of it.
    Model(Box<Model>),
}

impl Default for CpuIdentity {
    fn default() -> Self {
        Self::Host { masks: FeatureSet::default() }
    }
}

impl Cpu {
    /// The arrangement of so many vCPUs.
    pub fn topology(&self, vcpus: u32) -> Topology {
        self.topology.unwrap_or_else(|| Topology::one_socket(vcpus))
    }

    /// The host processors that a vCPU may run on; `None` is anywhere.
    pub fn affinity_of(&self, vcpu: u32) -> Option<&[u32]> {
        let at = if self.affinity.len() == 1 { 0 } else { usize::try_from(vcpu).unwrap_or(usize::MAX) };
        self.affinity.get(at).map(Vec::as_slice)
    }

    pub(crate) fn validate(&self, vcpus: u32, memory_mib: u64) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: String| Err(ConfigError { field: field.into(), problem });
        if let Err(e) = self.topology(vcpus).check(vcpus) {
            return wrong("cpu.topology", e.to_string());
        }
        if let CpuIdentity::Model(model) = &self.identity {
            if memory_mib > model.most_memory_mib() {
                let problem = format!(
                    "{memory_mib} MiB are more than the processor's {} bits of physical address reach ({} MiB)",
                    model.address_width,
                    model.most_memory_mib()
                );
                return wrong("memory_mib", problem);
            }
            if model.vendor.len() != 12 || !model.vendor.is_ascii() || model.brand.len() > 47 {
                return wrong("cpu.identity", "a vendor has 12 letters, a brand at most 47".into());
            }
            let odd = |c: &keelson_vmm_cpu::Component| !(2..63).contains(&c.bit) || c.size == 0;
            if !(32..=52).contains(&model.address_width) || model.xsave.iter().any(odd) {
                return wrong("cpu.identity", "the address width or an XSAVE component is impossible".into());
            }
        }
        let lists = self.affinity.len();
        if lists > 1 && usize::try_from(vcpus) != Ok(lists) {
            return wrong(
                "cpu.affinity",
                format!("{lists} lists; give one for all vCPUs, or one for each of the {vcpus}"),
            );
        }
        for (n, list) in self.affinity.iter().enumerate() {
            if list.is_empty() || list.iter().any(|cpu| *cpu > MAX_HOST_CPU) {
                return wrong(
                    &format!("cpu.affinity[{n}]"),
                    format!("it must name host processors, each 0 to {MAX_HOST_CPU}"),
                );
            }
        }
        Ok(())
    }
}

/// Reads a list of host processors such as `0-3,8`.
pub fn cpu_list(text: &str) -> Result<Vec<u32>, String> {
    let number = |word: &str| {
        let n = word.trim().parse::<u32>().ok().filter(|n| *n <= MAX_HOST_CPU);
        n.ok_or_else(|| {
            format!("`{text}` is no list of host processors such as 0-3,8 (each 0 to {MAX_HOST_CPU})")
        })
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("`{part}` counts backwards"));
        }
        list.extend(first..=last);
    }
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(cpu_list("0-3,8, 2"), Ok(vec![0, 1, 2, 3, 8]));
        for wrong in ["", "a", "3-1", "1-", "-1", "1024", "0,,1", "0-99999999999"] {
            assert!(cpu_list(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_processor_is_named() {
        let field = |cpu: Cpu, vcpus, memory| cpu.validate(vcpus, memory).unwrap_err().field;
        let model =
            keelson_vmm_cpu::find("x86-64-v1").unwrap().resolve("AuthenticAMD", &FeatureSet::default());
        let with =
            |model: &Model| Cpu { identity: CpuIdentity::Model(Box::new(model.clone())), ..Cpu::default() };
        assert_eq!(with(&model).validate(4, 1024), Ok(()));
        assert_eq!(field(with(&model), 1, 1 << 19), "memory_mib");
        assert_eq!(field(with(&Model { vendor: "me".into(), ..model.clone() }), 1, 64), "cpu.identity");
        assert_eq!(field(with(&Model { address_width: 200, ..model }), 1, 64), "cpu.identity");
        let topology = Some(Topology { sockets: 2, cores: 2, threads: 1 });
        assert_eq!(field(Cpu { topology, ..Cpu::default() }, 5, 64), "cpu.topology");
        let pinned = |affinity| Cpu { affinity, ..Cpu::default() };
        assert_eq!(field(pinned(vec![vec![0], vec![1]]), 3, 64), "cpu.affinity");
        assert_eq!(field(pinned(vec![vec![0], vec![]]), 2, 64), "cpu.affinity[1]");
        let two = pinned(vec![vec![0], vec![1]]);
        assert_eq!((two.affinity_of(1), two.affinity_of(2)), (Some(&[1][..]), None));
        assert_eq!(pinned(vec![vec![3]]).affinity_of(7), Some(&[3][..]));
    }
}
