//! One adapter's way to an address: DHCP first, a link-local address beside it while nobody answers. Pure, like its two parts.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use keelson_netcfg_control::MacAddr;

use crate::arp::Arp;
use crate::clock::Jitter;
use crate::dhcp::machine::{Action as Dhcp, Input, Lease, Machine, Outgoing, Reply};
use crate::linklocal::{self, LinkLocal};

/// Looking for a link-local address takes 4 to 7 s and begins after this long without a lease, so that it is there at about 10 s.
const LINK_LOCAL_AFTER: Duration = Duration::from_secs(5);
/// After this long without a lease a person is told.
pub(crate) const UNANSWERED_AFTER: Duration = Duration::from_secs(10);

/// What the client wants sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Send {
    Dhcp(Outgoing),
    Probe(Ipv4Addr),
    Announce(Ipv4Addr),
}

/// What happens to it.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Link(bool),
    Timer,
    Reply(Reply),
    Arp(Arp),
    Restart,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Client {
    machine: Machine,
    link_local: LinkLocal,
    /// Since when it has had a link but no lease.
    waiting_since: Option<Duration>,
    /// Whether its long wait has been told.
    told: bool,
    link: bool,
}

impl Client {
    /// `lease` and `link_local` are what an earlier life of this process had.
    pub(crate) fn new(
        mac: MacAddr,
        mut jitter: Jitter,
        lease: Option<Lease>,
        link_local: Option<Ipv4Addr>,
        now: Duration,
    ) -> Self {
        let mut local = LinkLocal::new(mac, Jitter::new(jitter.next()));
        let machine = match lease {
            Some(lease) => Machine::resume(mac, jitter, lease, now),
            None => Machine::new(mac, jitter),
        };
        let mut waiting_since = None;
        if let (None, Some(address)) = (machine.lease(), link_local) {
            local.resume(address);
            // It had waited long enough to need that address: it need not be said again only after another wait.
            waiting_since = Some(now.saturating_sub(UNANSWERED_AFTER));
        }
        // A resumed lease was bound with a link; what the link is now comes as the first event.
        let link = machine.lease().is_some();
        Self { machine, link_local: local, waiting_since, told: false, link }
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The address to use now.
    pub(crate) fn address(&self) -> Option<(Ipv4Net, Option<Ipv4Addr>)> {
        match self.machine.lease() {
            Some(lease) => Some((lease.address, lease.gateway)),
            None => self.link_local.address().map(|a| (a, None)),
        }
    }

    /// Whether it has gone without a lease long enough for a person to be told.
    pub(crate) fn unanswered(&self, now: Duration) -> bool {
        self.link && self.waiting_since.is_some_and(|since| now >= since + UNANSWERED_AFTER)
    }

    /// When [`Event::Timer`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let own = self.waiting_since.filter(|_| self.link).and_then(|since| {
            let begin = (!self.link_local.wants_arp()).then_some(since + LINK_LOCAL_AFTER);
            let tell = (!self.told).then_some(since + UNANSWERED_AFTER);
            [begin, tell].into_iter().flatten().min()
        });
        [own, self.machine.deadline(), self.link_local.deadline()].into_iter().flatten().min()
    }

    /// Whether ARP packets matter now.
    pub(crate) fn wants_arp(&self) -> bool {
        self.machine.wants_arp() || self.link_local.wants_arp()
    }

    /// Takes what happened at `now`; returns what to send, in order.
    pub(crate) fn step(&mut self, now: Duration, event: Event) -> Vec<Send> {
        let mut out = Vec::new();
        let input = match event {
            Event::Link(link) if link == self.link => return out,
            Event::Link(link) => {
                self.link = link;
                Input::Link(link)
            }
            Event::Timer => {
                match self.link_local.timer(now) {
                    Some(linklocal::Action::Probe(address)) => out.push(Send::Probe(address)),
                    Some(linklocal::Action::Defend(address)) => out.push(Send::Announce(address)),
                    None => {}
                }
                Input::Timer
            }
            Event::Arp(arp) => {
                if let Some(linklocal::Action::Defend(address)) = self.link_local.arp(now, &arp) {
                    out.push(Send::Announce(address));
                }
                Input::Arp(arp)
            }
            Event::Reply(reply) => Input::Reply(reply),
            Event::Restart => {
                self.link_local.stop();
                self.waiting_since = None;
                Input::Restart
            }
        };
        for action in self.machine.step(now, input) {
            match action {
                Dhcp::Send(message) => out.push(Send::Dhcp(message)),
                Dhcp::Probe(address) => out.push(Send::Probe(address)),
                // The lease itself is what `address` shows.
                Dhcp::Bind(_) | Dhcp::Unbind => {}
            }
        }
        if self.machine.lease().is_some() {
            self.link_local.stop();
            self.waiting_since = None;
            self.told = false;
        } else if self.link {
            let since = *self.waiting_since.get_or_insert(now);
            self.told = now >= since + UNANSWERED_AFTER;
            if now >= since + LINK_LOCAL_AFTER {
                self.link_local.start(now);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::machine::{OutgoingKind, ReplyKind};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn run_until(client: &mut Client, end: Duration) -> Vec<(Duration, Send)> {
        let mut sent = Vec::new();
        while let Some(at) = client.deadline().filter(|at| *at <= end) {
            sent.extend(client.step(at, Event::Timer).into_iter().map(|send| (at, send)));
        }
        sent
    }

    fn reply(kind: ReplyKind, xid: u32) -> Event {
        let address = Ipv4Addr::new(192, 0, 2, 50);
        let server = Some(Ipv4Addr::new(192, 0, 2, 1));
        let mask = Some(Ipv4Addr::new(255, 255, 255, 0));
        Event::Reply(Reply {
            kind,
            xid,
            address,
            server,
            mask,
            gateway: server,
            dns: vec![],
            search: vec![],
            hostname: None,
            lease_s: Some(600),
            t1_s: None,
            t2_s: None,
            text: None,
        })
    }

    #[test]
    fn silence_brings_a_link_local_address_at_about_ten_seconds_and_a_lease_replaces_it() {
        let mut client = Client::new(MAC, Jitter::new(3), None, None, s(0));
        client.step(s(0), Event::Link(true));
        run_until(&mut client, s(8));
        assert_eq!((client.address(), client.unanswered(s(8))), (None, false));
        let sent = run_until(&mut client, s(13));
        let (address, gateway) = client.address().expect("a link-local address");
        assert!(address.addr().is_link_local() && gateway.is_none());
        assert!(client.unanswered(s(13)));
        // DHCP goes on meanwhile, and a server appears.
        let later = run_until(&mut client, s(60));
        let mut discovers = sent.iter().chain(&later).filter_map(|(_, send)| match send {
            Send::Dhcp(message) if message.kind == OutgoingKind::Discover => Some(message.xid),
            _ => None,
        });
        let xid = discovers.next_back().expect("a DISCOVER");
        client.step(s(60), reply(ReplyKind::Offer, xid));
        client.step(s(60), reply(ReplyKind::Ack, xid));
        run_until(&mut client, s(61));
        assert_eq!(client.address().map(|(a, _)| a.to_string()).as_deref(), Some("192.0.2.50/24"));
        assert!(!client.unanswered(s(61)) && !client.wants_arp());
    }

    #[test]
    fn a_link_local_address_of_before_is_kept_and_known_to_be_a_stopgap() {
        let had = Ipv4Addr::new(169, 254, 7, 7);
        let mut client = Client::new(MAC, Jitter::new(3), None, Some(had), s(100));
        client.step(s(100), Event::Link(true));
        assert_eq!(client.address().map(|(a, _)| a.addr()), Some(had));
        assert!(client.unanswered(s(100)));
        run_until(&mut client, s(130));
        assert_eq!(client.address().map(|(a, _)| a.addr()), Some(had));
    }

    #[test]
    fn without_a_link_nothing_is_sent_and_nobody_is_told_of_dhcp() {
        let mut client = Client::new(MAC, Jitter::new(3), None, None, s(0));
        assert_eq!(client.deadline(), None);
        client.step(s(0), Event::Link(true));
        client.step(s(1), Event::Link(false));
        assert!(!client.unanswered(s(100)));
    }

    proptest::proptest! {
        #[test]
        fn time_never_stands_still(seed: u64, flips in proptest::collection::vec(1u64..40, 0..20)) {
            let mut client = Client::new(MAC, Jitter::new(seed), None, None, s(0));
            let (mut now, mut link) = (s(0), false);
            for wait in flips {
                link = !link;
                client.step(now, Event::Link(link));
                let (end, mut turns) = (now + s(wait), 0);
                while let Some(at) = client.deadline().filter(|at| *at <= end) {
                    now = now.max(at);
                    client.step(now, Event::Timer);
                    turns += 1;
                    proptest::prop_assert!(turns < 100, "it spins at {:?}", at);
                }
                now = end;
            }
        }
    }
}
