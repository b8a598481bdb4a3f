//! The client's walk through RFC 2131's states, second by second, and a random walk that must never stick or panic.

use super::*;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn reply(kind: ReplyKind, xid: u32) -> Reply {
    Reply {
        kind,
        xid,
        address: ADDRESS,
        server: Some(SERVER),
        mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        gateway: Some(SERVER),
        dns: vec![SERVER],
        search: vec![],
        hostname: None,
        lease_s: Some(1000),
        t1_s: None,
        t2_s: None,
        text: None,
    }
}

fn sent(actions: &[Action]) -> Outgoing {
    match actions {
        [Action::Send(message)] => message.clone(),
        other => panic!("one message was due, not {other:?}"),
    }
}

/// Lets the deadline come; what it brought.
fn tick(machine: &mut Machine) -> (Duration, Vec<Action>) {
    let now = machine.deadline().expect("a deadline");
    (now, machine.step(now, Input::Timer))
}

fn bound(start: Duration) -> Machine {
    let mut m = Machine::new(MAC, Jitter::new(1));
    let discover = sent(&m.step(start, Input::Link(true)));
    assert_eq!(discover.kind, OutgoingKind::Discover);
    let request = sent(&m.step(start, Input::Reply(reply(ReplyKind::Offer, discover.xid))));
    assert_eq!(
        (request.kind, request.requested, request.server, request.ciaddr),
        (OutgoingKind::Request, Some(ADDRESS), Some(SERVER), None)
    );
    assert_eq!(request.xid, discover.xid);
    assert_eq!(m.step(start, Input::Reply(reply(ReplyKind::Ack, request.xid))), [Action::Probe(ADDRESS)]);
    let mut probes = 1;
    loop {
        match tick(&mut m).1.as_slice() {
            [Action::Probe(_)] => probes += 1,
            [Action::Bind(lease)] => {
                assert_eq!(lease.address.to_string(), "192.0.2.50/24");
                assert_eq!(
                    (lease.renew_at, lease.rebind_at, lease.ends_at),
                    (start + s(500), start + s(875), Some(start + s(1000)))
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((probes, m.phase()), (3, DhcpPhase::Bound));
    m
}

#[test]
fn a_lease_is_taken_renewed_rebound_and_lost_in_the_end() {
    let start = s(100);
    let mut m = bound(start);
    let (at, out) = tick(&mut m);
    let renew = sent(&out);
    assert_eq!(
        (at, renew.unicast_to, renew.ciaddr, renew.requested, renew.server),
        (start + s(500), Some(SERVER), Some(ADDRESS), None, None)
    );
    assert_eq!(m.phase(), DhcpPhase::Renewing);
    assert!(
        matches!(m.step(at, Input::Reply(reply(ReplyKind::Ack, renew.xid))).as_slice(), [Action::Bind(l)] if l.renew_at == at + s(500))
    );
    // Now nobody answers any more.
    let began = at;
    let mut unicast = 0;
    let rebind_at = loop {
        let (at, out) = tick(&mut m);
        match sent(&out).unicast_to {
            Some(_) => unicast += 1,
            None => break at,
        }
    };
    assert_eq!((rebind_at, m.phase()), (began + s(875), DhcpPhase::Rebinding));
    assert!((2..8).contains(&unicast), "{unicast} renewals");
    let lost_at = loop {
        let (at, out) = tick(&mut m);
        if let [Action::Unbind, Action::Send(discover)] = out.as_slice() {
            assert_eq!(discover.kind, OutgoingKind::Discover);
            break at;
        }
        assert_eq!(sent(&out).unicast_to, None);
    };
    assert_eq!(lost_at, began + s(1000));
    assert_eq!(m.lease(), None);
    assert!(m.last_error().is_some() && m.unanswered() > 4);
}

#[test]
fn any_server_may_extend_a_lease_that_is_rebinding() {
    let mut m = bound(s(0));
    while m.phase() != DhcpPhase::Rebinding {
        tick(&mut m);
    }
    let other = Ipv4Addr::new(192, 0, 2, 2);
    let xid = m.xid;
    let out = m.step(s(900), Input::Reply(Reply { server: Some(other), ..reply(ReplyKind::Ack, xid) }));
    assert!(matches!(out.as_slice(), [Action::Bind(l)] if l.server == other));
}

#[test]
fn repeats_double_up_to_64_seconds() {
    let mut m = Machine::new(MAC, Jitter::new(7));
    m.step(s(0), Input::Link(true));
    let mut before = s(0);
    for expected in [2, 4, 8, 16, 32, 64, 64, 64] {
        let (at, out) = tick(&mut m);
        assert_eq!(sent(&out).kind, OutgoingKind::Discover);
        let wait = at - before;
        assert!(wait.abs_diff(s(expected)) <= s(1), "{wait:?} instead of {expected} s");
        before = at;
    }
    assert_eq!(m.unanswered(), 8);
}

#[test]
fn a_nak_drops_the_lease_and_repeated_naks_slow_down() {
    let mut m = bound(s(0));
    let (at, out) = tick(&mut m);
    let renew = sent(&out);
    let nak = Reply { text: Some("gone".into()), ..reply(ReplyKind::Nak, renew.xid) };
    assert_eq!(m.step(at, Input::Reply(nak)), [Action::Unbind]);
    assert!(m.last_error().unwrap().contains("gone"));
    let mut now = at;
    for wait in [1, 2, 4, 8] {
        let (at, out) = tick(&mut m);
        assert_eq!(at - now, s(wait));
        let xid = sent(&out).xid;
        m.step(at, Input::Reply(reply(ReplyKind::Offer, xid)));
        assert!(m.step(at, Input::Reply(reply(ReplyKind::Nak, xid))).is_empty());
        now = at;
    }
}

#[test]
fn an_address_in_use_is_declined_and_asked_for_again_ten_seconds_later() {
    let mut m = Machine::new(MAC, Jitter::new(1));
    let xid = sent(&m.step(s(0), Input::Link(true))).xid;
    m.step(s(0), Input::Reply(reply(ReplyKind::Offer, xid)));
    m.step(s(0), Input::Reply(reply(ReplyKind::Ack, xid)));
    assert!(m.wants_arp());
    let holder = Arp {
        sender_mac: MacAddr([2, 0, 0, 0, 0, 9]),
        sender: ADDRESS,
        target: Ipv4Addr::UNSPECIFIED,
        request: false,
    };
    let decline = sent(&m.step(s(0), Input::Arp(holder)));
    assert_eq!(
        (decline.kind, decline.requested, decline.server),
        (OutgoingKind::Decline, Some(ADDRESS), Some(SERVER))
    );
    let (at, out) = tick(&mut m);
    assert_eq!((at, sent(&out).kind), (s(10), OutgoingKind::Discover));
}

#[test]
fn a_link_that_comes_back_confirms_the_lease_and_keeps_it_without_an_answer() {
    let mut m = bound(s(0));
    assert_eq!(m.step(s(10), Input::Link(false)), []);
    assert_eq!((m.phase(), m.lease().is_some()), (DhcpPhase::Bound, true));
    let request = sent(&m.step(s(20), Input::Link(true)));
    assert_eq!(
        (request.requested, request.server, request.ciaddr, request.unicast_to),
        (Some(ADDRESS), None, None, None)
    );
    while m.phase() != DhcpPhase::Bound {
        tick(&mut m);
    }
    assert_eq!(m.deadline(), Some(s(500)));
    // In another network a server says no.
    m.step(s(100), Input::Link(false));
    let request = sent(&m.step(s(110), Input::Link(true)));
    assert_eq!(m.step(s(110), Input::Reply(reply(ReplyKind::Nak, request.xid))), [Action::Unbind]);
}

#[test]
fn a_lease_that_ends_while_the_link_is_away_is_dropped_on_time() {
    let mut m = bound(s(0));
    m.step(s(10), Input::Link(false));
    assert_eq!(m.deadline(), Some(s(1000)));
    assert_eq!(m.step(s(1000), Input::Timer), [Action::Unbind]);
    assert_eq!(m.deadline(), None);
}

#[test]
fn a_lease_is_resumed_where_it_stood_and_an_ended_one_is_not() {
    let lease = bound(s(0)).lease().unwrap().clone();
    let mut m = Machine::resume(MAC, Jitter::new(2), lease.clone(), s(499));
    assert_eq!((m.phase(), m.deadline()), (DhcpPhase::Bound, Some(s(500))));
    assert_eq!(sent(&m.step(s(500), Input::Timer)).unicast_to, Some(SERVER));
    assert_eq!(Machine::resume(MAC, Jitter::new(2), lease, s(1000)).lease(), None);
}

#[test]
fn answers_without_the_lease_time_or_of_another_transaction_are_not_taken() {
    let mut m = Machine::new(MAC, Jitter::new(1));
    let xid = sent(&m.step(s(0), Input::Link(true))).xid;
    assert_eq!(m.step(s(0), Input::Reply(reply(ReplyKind::Offer, xid ^ 1))), []);
    assert_eq!(
        m.step(s(0), Input::Reply(Reply { address: Ipv4Addr::UNSPECIFIED, ..reply(ReplyKind::Offer, xid) })),
        []
    );
    m.step(s(0), Input::Reply(reply(ReplyKind::Offer, xid)));
    assert_eq!(m.step(s(0), Input::Reply(Reply { lease_s: None, ..reply(ReplyKind::Ack, xid) })), []);
    assert_eq!(
        m.step(
            s(0),
            Input::Reply(Reply { mask: Some(Ipv4Addr::new(255, 0, 255, 0)), ..reply(ReplyKind::Ack, xid) })
        ),
        []
    );
    assert!(matches!(m.step(s(0), Input::Reply(reply(ReplyKind::Ack, xid))).as_slice(), [Action::Probe(_)]));
}

proptest::proptest! {
    /// Whatever happens in whatever order: no panic, no time that stands still, no address kept beyond its lease.
    #[test]
    fn a_random_walk_never_sticks(seed: u64, steps in proptest::collection::vec((0u8..8, 0u32..4000, 0u32..4000, 0u32..4000), 1..200)) {
        let mut m = Machine::new(MAC, Jitter::new(seed));
        let (mut now, mut link, mut held) = (s(1), false, None::<Lease>);
        for (what, a, b, c) in steps {
            let input = match what {
                0 => { link = !link; Input::Link(link) }
                1 => Input::Reply(Reply { lease_s: Some(a), t1_s: Some(b), t2_s: Some(c), ..reply(ReplyKind::Ack, m.xid) }),
                2 => Input::Reply(reply(ReplyKind::Offer, m.xid)),
                3 => Input::Reply(reply(ReplyKind::Nak, m.xid)),
                4 => Input::Arp(Arp { sender_mac: MacAddr([9; 6]), sender: ADDRESS, target: ADDRESS, request: a % 2 == 0 }),
                5 => Input::Restart,
                _ => match m.deadline() {
                    Some(at) => { now = now.max(at); Input::Timer }
                    None => continue,
                },
            };
            let timer = matches!(input, Input::Timer);
            for action in m.step(now, input) {
                match action {
                    Action::Bind(lease) => {
                        proptest::prop_assert!(lease.renew_at <= lease.rebind_at);
                        proptest::prop_assert!(lease.ends_at.is_none_or(|end| lease.rebind_at <= end));
                        held = Some(lease);
                    }
                    Action::Unbind => held = None,
                    Action::Send(_) | Action::Probe(_) => {}
                }
            }
            proptest::prop_assert_eq!(held.as_ref(), m.lease());
            if timer {
                // Else the caller would spin: either nothing is due any more, or it is due later.
                let (first, mut turns) = (now, 0);
                while let Some(at) = m.deadline().filter(|at| *at <= first) {
                    m.step(at.max(first), Input::Timer).into_iter().for_each(|a| match a {
                        Action::Bind(lease) => held = Some(lease),
                        Action::Unbind => held = None,
                        _ => {}
                    });
                    turns += 1;
                    proptest::prop_assert!(turns < 4, "it spins at {:?} in {:?}", at, m.state);
                }
                proptest::prop_assert!(held.as_ref().and_then(|l| l.ends_at).is_none_or(|end| end > now));
            }
            proptest::prop_assert!(!link || m.deadline().is_some(), "it waits for nothing in {:?}", m.state);
        }
    }
}
