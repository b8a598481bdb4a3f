//! IPv4 link-local addresses (RFC 3927) as a pure state machine: pick, probe, claim, defend.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use keelson_netcfg_control::MacAddr;

use crate::arp::Arp;
use crate::clock::Jitter;

const PROBE_WAIT: Duration = Duration::from_secs(1);
const PROBES: u32 = 3;
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_SPREAD: Duration = Duration::from_secs(1);
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
const MAX_CONFLICTS: u32 = 10;
const RATE_LIMIT: Duration = Duration::from_secs(60);
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// What it wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask by ARP whether somebody has this address.
    Probe(Ipv4Addr),
    /// Say by ARP that it is ours.
    Defend(Ipv4Addr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Probing { address: Ipv4Addr, sent: u32 },
    Claimed { address: Ipv4Addr, defended: Option<Duration> },
}

/// The machine. It starts idle.
#[derive(Debug)]
pub(crate) struct LinkLocal {
    mac: MacAddr,
    state: State,
    deadline: Option<Duration>,
    /// Of addresses: seeded by the MAC address, so that a host gets the same one again (RFC 3927, 2.1).
    picks: Jitter,
    jitter: Jitter,
    conflicts: u32,
}

impl LinkLocal {
    pub(crate) fn new(mac: MacAddr, jitter: Jitter) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        let picks = Jitter::new(u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
        Self { mac, state: State::Idle, deadline: None, picks, jitter, conflicts: 0 }
    }

    /// Goes on with an address that an earlier life of this process claimed.
    pub(crate) fn resume(&mut self, address: Ipv4Addr) {
        if address.is_link_local() {
            self.state = State::Claimed { address, defended: None };
            self.deadline = None;
        }
    }

    /// Begins to look for an address, unless it has or seeks one already.
    pub(crate) fn start(&mut self, now: Duration) {
        if self.state == State::Idle {
            self.pick(now);
        }
    }

    /// Gives up.
    pub(crate) fn stop(&mut self) {
        self.state = State::Idle;
        self.deadline = None;
        self.conflicts = 0;
    }

    /// The address, once it is claimed.
    pub(crate) fn address(&self) -> Option<Ipv4Net> {
        match self.state {
            State::Claimed { address, .. } => Ipv4Net::new(address, 16).ok(),
            _ => None,
        }
    }

    /// Whether ARP packets matter now.
    pub(crate) fn wants_arp(&self) -> bool {
        self.state != State::Idle
    }

    /// When [`LinkLocal::timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    fn pick(&mut self, now: Duration) {
        // The first and last 256 addresses are reserved.
        let n = u16::try_from(self.picks.next() % (254 * 256)).unwrap_or(0) + 256;
        let [high, low] = n.to_be_bytes();
        self.state = State::Probing { address: Ipv4Addr::new(169, 254, high, low), sent: 0 };
        let least = if self.conflicts >= MAX_CONFLICTS { RATE_LIMIT } else { Duration::ZERO };
        self.deadline = Some(now + self.jitter.between(least, PROBE_WAIT));
    }

    /// The time has come, perhaps.
    pub(crate) fn timer(&mut self, now: Duration) -> Option<Action> {
        if self.deadline.is_none_or(|d| now < d) {
            return None;
        }
        self.deadline = None;
        let State::Probing { address, sent } = self.state else { return None };
        if sent == PROBES {
            self.state = State::Claimed { address, defended: None };
            return None;
        }
        self.state = State::Probing { address, sent: sent + 1 };
        let wait =
            if sent + 1 == PROBES { ANNOUNCE_WAIT } else { self.jitter.between(PROBE_MIN, PROBE_SPREAD) };
        self.deadline = Some(now + wait);
        Some(Action::Probe(address))
    }

    /// Somebody's ARP packet.
    pub(crate) fn arp(&mut self, now: Duration, arp: &Arp) -> Option<Action> {
        match self.state {
            State::Probing { address, .. } if arp.conflicts_with(address, self.mac) => {
                self.conflicts += 1;
                self.pick(now);
                None
            }
            State::Claimed { address, defended } if arp.sender == address && arp.sender_mac != self.mac => {
                // Defended once; a second conflict soon after means that the other does not yield (RFC 3927, 2.5 b).
                if defended.is_some_and(|at| now < at + DEFEND_INTERVAL) {
                    self.conflicts += 1;
                    self.pick(now);
                    None
                } else {
                    self.state = State::Claimed { address, defended: Some(now) };
                    Some(Action::Defend(address))
                }
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn machine() -> LinkLocal {
        LinkLocal::new(MAC, Jitter::new(1))
    }

    fn run(machine: &mut LinkLocal) -> (Vec<Ipv4Addr>, Duration) {
        let (mut probes, mut now) = (vec![], Duration::ZERO);
        while let Some(at) = machine.deadline() {
            now = at;
            if let Some(Action::Probe(address)) = machine.timer(now) {
                probes.push(address);
            }
        }
        (probes, now)
    }

    #[test]
    fn three_probes_without_an_answer_claim_the_same_address_each_time() {
        let (mut first, mut second) = (machine(), LinkLocal::new(MAC, Jitter::new(2)));
        first.start(Duration::ZERO);
        second.start(Duration::ZERO);
        let (probes, took) = run(&mut first);
        run(&mut second);
        let address = first.address().unwrap();
        assert_eq!(probes, [address.addr(); 3]);
        assert_eq!(Some(address), second.address());
        assert!((Duration::from_secs(4)..=Duration::from_secs(7)).contains(&took), "{took:?}");
        assert!(!matches!(address.addr().octets()[2], 0 | 255));
    }

    #[test]
    fn a_conflict_while_probing_picks_another_and_a_claim_is_defended_once() {
        let mut m = machine();
        m.start(Duration::ZERO);
        let Some(Action::Probe(first)) = m.timer(m.deadline().unwrap()) else { panic!("no probe") };
        let claim = |a| Arp { sender_mac: OTHER, sender: a, target: a, request: true };
        assert_eq!(m.arp(Duration::from_secs(1), &claim(first)), None);
        run(&mut m);
        let address = m.address().unwrap().addr();
        assert_ne!(address, first);
        assert_eq!(m.arp(Duration::from_secs(20), &claim(address)), Some(Action::Defend(address)));
        assert_eq!(m.arp(Duration::from_secs(31), &claim(address)), Some(Action::Defend(address)));
        assert_eq!(m.arp(Duration::from_secs(32), &claim(address)), None);
        assert_eq!(m.address(), None);
    }

    proptest::proptest! {
        #[test]
        fn every_pick_is_within_the_allowed_range(mac: [u8; 6], conflicts in 0u32..20) {
            let mut m = LinkLocal::new(MacAddr(mac), Jitter::new(3));
            m.start(Duration::ZERO);
            for _ in 0..conflicts {
                let State::Probing { address, .. } = m.state else { panic!("not probing") };
                proptest::prop_assert!(address.is_link_local());
                proptest::prop_assert!(!matches!(address.octets()[2], 0 | 255));
                m.arp(Duration::ZERO, &Arp { sender_mac: MacAddr([9; 6]), sender: address, target: address, request: false });
            }
        }
    }
}
