//! How vCPUs are arranged in sockets, cores and threads, and the APIC ids that this gives them.

use serde::{Deserialize, Serialize};

/// Sockets, cores in each, and threads in each core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Sockets.
    pub sockets: u32,
    /// Cores of a socket.
    pub cores: u32,
    /// Threads of a core.
    pub threads: u32,
}

/// Why an arrangement is not possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Zero of something, or not as many as there are vCPUs.
    #[error("{} sockets of {} cores of {} threads are not {vcpus} vCPUs", .topology.sockets, .topology.cores, .topology.threads)]
    Count {
        /// The arrangement.
        topology: Topology,
        /// The vCPUs.
        vcpus: u32,
    },
    /// An APIC id would not fit.
    #[error("{} sockets of {} cores of {} threads need APIC ids above 254: use fewer, or numbers that are powers of two", .0.sockets, .0.cores, .0.threads)]
    Ids(Topology),
}

/// How many bits count `n` things.
fn bits(n: u32) -> u32 {
    n.max(1).checked_next_power_of_two().map_or(32, u32::trailing_zeros)
}

impl Topology {
    /// One socket of single-threaded cores.
    pub fn one_socket(vcpus: u32) -> Self {
        Self { sockets: 1, cores: vcpus, threads: 1 }
    }

    /// Checks that it arranges exactly so many vCPUs, with APIC ids of 8 bits.
    pub fn check(&self, vcpus: u32) -> Result<(), TopologyError> {
        let product = u64::from(self.sockets) * u64::from(self.cores);
        if vcpus == 0 || product.checked_mul(self.threads.into()) != Some(vcpus.into()) {
            return Err(TopologyError::Count { topology: *self, vcpus });
        }
        // 255 is the broadcast.
        if self.apic_id(vcpus - 1) > 254 { Err(TopologyError::Ids(*self)) } else { Ok(()) }
    }

    /// The bits of an APIC id that count threads.
    pub fn thread_bits(&self) -> u32 {
        bits(self.threads)
    }

    /// The bits of an APIC id that count threads and cores: above them is the socket.
    pub fn socket_shift(&self) -> u32 {
        (bits(self.threads) + bits(self.cores)).min(31)
    }

    /// The APIC id of a vCPU, which is also its id within KVM.
    pub fn apic_id(&self, index: u32) -> u32 {
        let (threads, cores) = (self.threads.max(1), self.cores.max(1));
        let (thread, core) = (index % threads, index / threads % cores);
        let socket = index / threads / cores;
        socket.wrapping_shl(self.socket_shift()) | core << self.thread_bits().min(31) | thread
    }

    /// Logical processors of a socket.
    pub(crate) fn in_socket(&self) -> u32 {
        self.cores.saturating_mul(self.threads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_socket_counts_through_and_others_leave_room() {
        assert_eq!([0, 1, 63].map(|n| Topology::one_socket(64).apic_id(n)), [0, 1, 63]);
        let odd = Topology { sockets: 2, cores: 3, threads: 2 };
        assert_eq!(odd.check(12), Ok(()));
        assert_eq!(
            (0..12).map(|n| odd.apic_id(n)).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]
        );
        assert!(odd.check(11).unwrap_err().to_string().contains("are not 11 vCPUs"));
        assert!(
            Topology { sockets: 50, cores: 5, threads: 1 }
                .check(250)
                .unwrap_err()
                .to_string()
                .contains("APIC ids")
        );
    }

    proptest! {
        #[test]
        fn ids_are_unique_and_in_order(sockets in 1u32..9, cores in 1u32..40, threads in 1u32..4) {
            let topology = Topology { sockets, cores, threads };
            let vcpus = sockets * cores * threads;
            if topology.check(vcpus).is_ok() {
                let ids: Vec<u32> = (0..vcpus).map(|n| topology.apic_id(n)).collect();
                prop_assert!(ids.windows(2).all(|w| w[0] < w[1]) && *ids.last().unwrap() <= 254);
            }
        }

        #[test]
        fn no_numbers_make_it_panic(sockets: u32, cores: u32, threads: u32, vcpus: u32, index: u32) {
            let topology = Topology { sockets, cores, threads };
            let _ = topology.check(vcpus);
            topology.apic_id(index);
        }
    }
}
