//! A DHCPv4 client's state machine (RFC 2131, 4.4 and figure 5). Pure: time and randomness come in, actions go out.
//!
//! Where it departs from the RFC's suggestions, for a host that somebody waits for: no random wait before the first DISCOVER; the
//! first repeat comes after 2 s, not 4; an offered address is probed with three ARP requests within 300 ms (RFC 5227 would
//! take 4 to 7 s), since the server has vouched for it already; after a NAK the restart is delayed (1 s, doubling), so that a
//! server that refuses every request is not hammered.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use keelson_netcfg_control::DhcpPhase;
use serde::{Deserialize, Serialize};

use crate::arp::Arp;
use crate::clock::Jitter;
use keelson_netcfg_control::MacAddr;

const FIRST_REPEAT: Duration = Duration::from_secs(2);
const LAST_REPEAT: Duration = Duration::from_secs(64);
const PROBES: u32 = 3;
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// RFC 2131, 3.1 step 5: the least wait after a DECLINE.
const AFTER_DECLINE: Duration = Duration::from_secs(10);
/// After so many requests without an answer an offer is given up, or a lease from before is used unconfirmed.
const REQUESTS: u32 = 4;
const RENEW_FLOOR: Duration = Duration::from_secs(60);
/// A lease shorter than this is taken for this long: a client that renews without pause helps nobody.
const SHORTEST_LEASE: Duration = Duration::from_secs(2);

/// A lease, with times since boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) address: Ipv4Net,
    pub(crate) server: Ipv4Addr,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) search: Vec<String>,
    pub(crate) hostname: Option<String>,
    /// When to ask the server for more time (T1).
    pub(crate) renew_at: Duration,
    /// When to ask any server (T2).
    pub(crate) rebind_at: Duration,
    /// When it ends; `None` for a lease without end.
    pub(crate) ends_at: Option<Duration>,
}

/// A server's message, checked for form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) kind: ReplyKind,
    pub(crate) xid: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) server: Option<Ipv4Addr>,
    pub(crate) mask: Option<Ipv4Addr>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) dns: Vec<Ipv4Addr>,
    pub(crate) search: Vec<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) lease_s: Option<u32>,
    pub(crate) t1_s: Option<u32>,
    pub(crate) t2_s: Option<u32>,
    /// The server's own words, in a NAK.
    pub(crate) text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    Offer,
    Ack,
    Nak,
}

/// What the client says (RFC 2131, table 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) kind: OutgoingKind,
    pub(crate) xid: u32,
    /// Seconds since the client began to ask.
    pub(crate) secs: u16,
    /// Its present address, where it has one that it may use as a source.
    pub(crate) ciaddr: Option<Ipv4Addr>,
    pub(crate) requested: Option<Ipv4Addr>,
    pub(crate) server: Option<Ipv4Addr>,
    /// Sent to this server from `ciaddr`; broadcast otherwise.
    pub(crate) unicast_to: Option<Ipv4Addr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutgoingKind {
    Discover,
    Request,
    Decline,
}

/// What happens to a client.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    /// The network is there, or not.
    Link(bool),
    /// The deadline has come.
    Timer,
    Reply(Reply),
    Arp(Arp),
    /// Drop the lease and begin anew.
    Restart,
}

/// What a client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Send(Outgoing),
    /// Ask by ARP whether somebody has this address.
    Probe(Ipv4Addr),
    /// The lease is there or renewed: use its address.
    Bind(Lease),
    /// The lease is lost: drop its address.
    Unbind,
}

#[derive(Debug, Clone, PartialEq)]
enum State {
    /// No link.
    Idle,
    /// After a NAK or a DECLINE.
    Waiting,
    Selecting,
    Requesting {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// A lease from before the link went away is being confirmed.
    Rebooting,
    Probing {
        lease: Lease,
        sent: u32,
    },
    Bound,
    Renewing,
    Rebinding,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Machine {
    mac: MacAddr,
    state: State,
    lease: Option<Lease>,
    deadline: Option<Duration>,
    jitter: Jitter,
    xid: u32,
    /// When the present attempt began.
    began: Duration,
    attempts: u32,
    naks: u32,
    unanswered: u32,
    last_error: Option<String>,
}

impl Machine {
    pub(crate) fn new(mac: MacAddr, jitter: Jitter) -> Self {
        Self {
            mac,
            state: State::Idle,
            lease: None,
            deadline: None,
            jitter,
            xid: 0,
            began: Duration::ZERO,
            attempts: 0,
            naks: 0,
            unanswered: 0,
            last_error: None,
        }
    }

    /// Goes on with a lease that an earlier life of this process took; one that has ended by `now` is not used.
    pub(crate) fn resume(mac: MacAddr, jitter: Jitter, lease: Lease, now: Duration) -> Self {
        let mut machine = Self::new(mac, jitter);
        if lease.ends_at.is_none_or(|end| now < end) {
            machine.deadline = Some(lease.renew_at);
            machine.lease = Some(lease);
            machine.state = State::Bound;
        }
        machine
    }

    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// When [`Input::Timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let end = self.lease.as_ref().and_then(|l| l.ends_at);
        [self.deadline, end].into_iter().flatten().min()
    }

    /// Whether ARP packets matter now.
    pub(crate) fn wants_arp(&self) -> bool {
        matches!(self.state, State::Probing { .. })
    }

    pub(crate) fn phase(&self) -> DhcpPhase {
        match self.state {
            State::Idle if self.lease.is_some() => DhcpPhase::Bound,
            State::Idle | State::Waiting => DhcpPhase::Init,
            State::Selecting => DhcpPhase::Selecting,
            State::Requesting { .. } | State::Rebooting | State::Probing { .. } => DhcpPhase::Requesting,
            State::Bound => DhcpPhase::Bound,
            State::Renewing => DhcpPhase::Renewing,
            State::Rebinding => DhcpPhase::Rebinding,
        }
    }

    pub(crate) fn unanswered(&self) -> u32 {
        self.unanswered
    }

    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Takes what happened at `now`; returns what to do, in order.
    pub(crate) fn step(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        match input {
            Input::Link(false) => {
                self.state = State::Idle;
                self.deadline = None;
            }
            Input::Link(true) if self.state == State::Idle => match self.lease {
                Some(_) => self.reboot(now, &mut out),
                None => self.discover(now, &mut out),
            },
            Input::Link(true) => {}
            Input::Timer => self.timer(now, &mut out),
            Input::Reply(reply) if reply.xid == self.xid => self.reply(now, reply, &mut out),
            Input::Reply(_) => {}
            Input::Arp(arp) => self.arp(now, &arp, &mut out),
            Input::Restart => {
                self.lose(&mut out);
                self.last_error = None;
                self.naks = 0;
                if self.state != State::Idle {
                    self.discover(now, &mut out);
                }
            }
        }
        out
    }

    fn lose(&mut self, out: &mut Vec<Action>) {
        if self.lease.take().is_some() {
            out.push(Action::Unbind);
        }
    }

    fn begin(&mut self, now: Duration, state: State) {
        self.state = state;
        self.xid = self.jitter.xid();
        self.began = now;
        self.attempts = 0;
    }

    fn discover(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.begin(now, State::Selecting);
        self.transmit(now, out);
    }

    fn reboot(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.begin(now, State::Rebooting);
        self.transmit(now, out);
    }

    /// Sends what the present state says, and sets the time of its repetition.
    fn transmit(&mut self, now: Duration, out: &mut Vec<Action>) {
        let secs = u16::try_from((now.saturating_sub(self.began)).as_secs()).unwrap_or(u16::MAX);
        let mut message = Outgoing {
            kind: OutgoingKind::Request,
            xid: self.xid,
            secs,
            ciaddr: None,
            requested: None,
            server: None,
            unicast_to: None,
        };
        match (&self.state, &self.lease) {
            (State::Selecting, _) => message.kind = OutgoingKind::Discover,
            (State::Requesting { address, server }, _) => {
                message.requested = Some(*address);
                message.server = Some(*server);
            }
            (State::Rebooting, Some(lease)) => message.requested = Some(lease.address.addr()),
            (State::Renewing, Some(lease)) => {
                message.ciaddr = Some(lease.address.addr());
                message.unicast_to = Some(lease.server);
            }
            (State::Rebinding, Some(lease)) => message.ciaddr = Some(lease.address.addr()),
            _ => return,
        }
        out.push(Action::Send(message));
        self.deadline = Some(self.repeat_at(now));
    }

    /// RFC 2131, 4.1 (doubling, ±1 s) and, while a lease runs, 4.4.5 (half of what remains).
    fn repeat_at(&mut self, now: Duration) -> Duration {
        let window = match (&self.state, &self.lease) {
            (State::Renewing, Some(lease)) => Some((lease.renew_at, lease.rebind_at)),
            (State::Rebinding, Some(lease)) => lease.ends_at.map(|end| (lease.rebind_at, end)),
            _ => None,
        };
        if let Some((from, until)) = window {
            // The RFC's least wait of a minute would be the whole of a short lease's window: of that an eighth is enough.
            let floor = RENEW_FLOOR.min(until.saturating_sub(from) / 8).max(Duration::from_secs(1));
            let half = until.saturating_sub(now) / 2;
            return (now + half.max(floor)).min(until.max(now));
        }
        let wait = FIRST_REPEAT.saturating_mul(1 << self.attempts.min(5)).min(LAST_REPEAT);
        let spread = Duration::from_secs(1).min(wait / 4);
        now + self.jitter.between(wait - spread, spread * 2)
    }

    fn timer(&mut self, now: Duration, out: &mut Vec<Action>) {
        if self.lease.as_ref().and_then(|l| l.ends_at).is_some_and(|end| now >= end) {
            self.lose(out);
            self.last_error = Some("the lease ended before any server gave it more time".into());
            match self.state {
                State::Idle => {}
                _ => self.discover(now, out),
            }
            return;
        }
        if self.deadline.is_none_or(|d| now < d) {
            return;
        }
        self.deadline = None;
        match self.state.clone() {
            State::Idle => {}
            State::Waiting => self.discover(now, out),
            State::Selecting => self.again(now, out),
            State::Requesting { .. } => {
                if self.attempts + 1 >= REQUESTS {
                    self.unanswered = self.unanswered.saturating_add(1);
                    self.last_error =
                        Some("the server that offered an address did not answer the request for it".into());
                    self.discover(now, out);
                } else {
                    self.again(now, out);
                }
            }
            State::Rebooting => {
                if self.attempts + 1 >= REQUESTS {
                    // Nobody answers: a lease that has not ended may still be used (RFC 2131, 3.2 step 3).
                    self.unanswered = self.unanswered.saturating_add(1);
                    self.settle(now);
                } else {
                    self.again(now, out);
                }
            }
            State::Probing { lease, sent } if sent < PROBES => self.probe(now, lease, sent, out),
            State::Probing { lease, .. } => self.bind(now, lease, out),
            State::Bound => {
                let rebind = self.lease.as_ref().is_some_and(|l| now >= l.rebind_at);
                self.begin(now, if rebind { State::Rebinding } else { State::Renewing });
                self.transmit(now, out);
            }
            State::Renewing if self.lease.as_ref().is_some_and(|l| now >= l.rebind_at) => {
                self.unanswered = self.unanswered.saturating_add(1);
                self.begin(now, State::Rebinding);
                self.transmit(now, out);
            }
            State::Renewing | State::Rebinding => self.again(now, out),
        }
    }

    fn again(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.attempts += 1;
        self.unanswered = self.unanswered.saturating_add(1);
        self.transmit(now, out);
    }

    fn reply(&mut self, now: Duration, reply: Reply, out: &mut Vec<Action>) {
        match (&self.state, reply.kind) {
            (State::Selecting, ReplyKind::Offer) => {
                let (Some(server), true) = (reply.server, usable(reply.address)) else { return };
                self.unanswered = 0;
                let xid = self.xid;
                self.begin(now, State::Requesting { address: reply.address, server });
                // The REQUEST answers the OFFER: same transaction (RFC 2131, 4.4.1).
                self.xid = xid;
                self.transmit(now, out);
            }
            (
                State::Requesting { .. } | State::Rebooting | State::Renewing | State::Rebinding,
                ReplyKind::Ack,
            ) => {
                let Some(lease) = self.granted(now, &reply) else {
                    self.last_error =
                        Some("a server's acknowledgement lacked the lease time or a usable address".into());
                    return;
                };
                self.unanswered = 0;
                if self.lease.as_ref().is_some_and(|l| l.address == lease.address) {
                    self.bind(now, lease, out);
                } else {
                    self.probe(now, lease, 0, out);
                }
            }
            (
                State::Requesting { .. } | State::Rebooting | State::Renewing | State::Rebinding,
                ReplyKind::Nak,
            ) => {
                let words = reply.text.map(|t| format!(": {t}")).unwrap_or_default();
                self.last_error = Some(format!("the DHCP server refused the address{words}"));
                self.unanswered = 0;
                self.lose(out);
                let wait = Duration::from_secs(1 << self.naks.min(6));
                self.naks = self.naks.saturating_add(1);
                self.state = State::Waiting;
                self.deadline = Some(now + wait);
            }
            _ => {}
        }
    }

    /// The lease that an acknowledgement gives; times are counted from the request's first sending, as the server does at the
    /// latest.
    fn granted(&self, now: Duration, reply: &Reply) -> Option<Lease> {
        let (seconds, address) = (reply.lease_s?, reply.address);
        if !usable(address) {
            return None;
        }
        let server = match (&self.state, reply.server) {
            (_, Some(server)) => server,
            (State::Requesting { server, .. }, None) => *server,
            _ => self.lease.as_ref()?.server,
        };
        let prefix = reply.mask.map_or(Some(classful(address)), |m| ipnet::ipv4_mask_to_prefix(m).ok())?;
        let start = if self.attempts == 0 { self.began } else { now };
        let endless = seconds == u32::MAX;
        let length = Duration::from_secs(seconds.into()).max(SHORTEST_LEASE);
        let far = Duration::from_secs(u32::MAX.into());
        let within = |s: Option<u32>, default: Duration, most: Duration| {
            let asked = s.map(|s| Duration::from_secs(s.into())).filter(|t| *t > Duration::ZERO && *t < most);
            asked.unwrap_or(default)
        };
        let (t1, t2) = if endless {
            (far, far)
        } else {
            let t2 = within(reply.t2_s, length * 7 / 8, length);
            (within(reply.t1_s, (length / 2).min(t2), t2), t2)
        };
        Some(Lease {
            address: Ipv4Net::new(address, prefix).ok()?,
            server,
            gateway: reply.gateway.filter(|g| usable(*g) && *g != address),
            dns: reply.dns.clone(),
            search: reply.search.clone(),
            hostname: reply.hostname.clone(),
            renew_at: start + t1,
            rebind_at: start + t2,
            ends_at: (!endless).then_some(start + length),
        })
    }

    fn probe(&mut self, now: Duration, lease: Lease, sent: u32, out: &mut Vec<Action>) {
        out.push(Action::Probe(lease.address.addr()));
        self.deadline = Some(now + PROBE_EVERY);
        self.state = State::Probing { lease, sent: sent + 1 };
    }

    fn bind(&mut self, now: Duration, lease: Lease, out: &mut Vec<Action>) {
        self.lease = Some(lease.clone());
        self.naks = 0;
        self.last_error = None;
        self.settle(now);
        out.push(Action::Bind(lease));
    }

    fn settle(&mut self, now: Duration) {
        self.state = State::Bound;
        // A renewal time that has passed already is due now.
        self.deadline = self.lease.as_ref().map(|l| l.renew_at.max(now));
    }

    fn arp(&mut self, now: Duration, arp: &Arp, out: &mut Vec<Action>) {
        let State::Probing { lease, .. } = &self.state else { return };
        let address = lease.address.addr();
        if !arp.conflicts_with(address, self.mac) {
            return;
        }
        let decline = Outgoing {
            kind: OutgoingKind::Decline,
            xid: self.jitter.xid(),
            secs: 0,
            ciaddr: None,
            requested: Some(address),
            server: Some(lease.server),
            unicast_to: None,
        };
        self.last_error =
            Some(format!("{address}, which the DHCP server offered, is used by {}", arp.sender_mac));
        out.push(Action::Send(decline));
        self.lose(out);
        self.state = State::Waiting;
        self.deadline = Some(now + AFTER_DECLINE);
    }
}

/// An address that a host can have.
fn usable(address: Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_loopback()
        && !address.is_broadcast()
        && address.octets()[0] < 240
}

/// The prefix length of the address's class, for servers that send no mask.
fn classful(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
