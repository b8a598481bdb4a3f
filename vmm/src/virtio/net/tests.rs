//! An adapter whose tap is a datagram socket: each datagram is a header and a frame.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::*;
use crate::pci::function::PciFunction;
use crate::virtio::testing::{Harness, PATIENCE};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn adapter(mask: u64) -> (Harness<Net>, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut harness = Harness::new(Net::new(Tap::stand_in(ours.into()), MAC));
    harness.bring_up(mask);
    (harness, theirs)
}

/// A frame with its header, filled so that a mix-up shows.
fn frame(length: usize, seed: u8) -> Vec<u8> {
    let payload = (0..length).map(|i| seed.wrapping_add(i as u8).wrapping_mul(7));
    [0; HEADER].into_iter().chain(payload).collect()
}

fn nothing_received(far: &UnixDatagram) -> bool {
    far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let nothing = far.recv(&mut [0; 16]).is_err();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    nothing
}

#[test]
fn a_frame_goes_out_as_it_is_however_it_is_cut() {
    let (mut h, far) = adapter(u64::MAX);
    let bytes = frame(300, 1);
    let at = h.buffer_with(&bytes);
    h.request(1, &[(at, 5), (at + 5, 100), (at + 105, 207)], &[]);
    let mut got = [0; 512];
    assert_eq!(far.recv(&mut got).unwrap(), 312);
    assert_eq!(got[..312], bytes);
}

#[test]
fn frames_that_are_none_are_dropped_and_given_back() {
    let (mut h, far) = adapter(u64::MAX);
    let at = h.buffer(80000);
    for length in [1, 12, 25, 12 + 65535 + 19] {
        h.request(1, &[(at, length)], &[]);
    }
    assert!(nothing_received(&far));
    h.request(1, &[(at, 26)], &[]);
    assert_eq!(far.recv(&mut [0; 64]).unwrap(), 26);
}

#[test]
fn a_long_frame_is_merged_from_buffers_and_given_back_at_once() {
    let (mut h, far) = adapter(u64::MAX);
    let buffers: Vec<_> = (0..4).map(|_| h.buffer(100)).collect();
    for buffer in &buffers {
        h.add(0, &[], &[(*buffer, 100)]);
    }
    h.kick(0);
    let sent = frame(218, 9);
    far.send(&sent).unwrap();
    let lengths: Vec<_> = (0..3).map(|_| h.wait_used(0).1).collect();
    assert_eq!(lengths, [100, 100, 30]);
    let got: Vec<_> = buffers.iter().zip(lengths).flat_map(|(b, l)| h.bytes(*b, l as usize)).collect();
    assert_eq!(got[10..12], 3u16.to_le_bytes(), "num_buffers");
    assert_eq!(got[12..], sent[12..]);
    assert_eq!(h.used(0), None);
}

#[test]
fn frames_wait_for_buffers_and_come_in_order() {
    let (mut h, far) = adapter(u64::MAX);
    for n in 0..5 {
        far.send(&frame(60, n)).unwrap();
    }
    // Room for half a frame is none.
    let small = h.buffer(40);
    h.add(0, &[], &[(small, 40)]);
    h.kick_if_asked(0);
    assert!(!h.router.wait(1, Duration::from_millis(50)));
    for n in 0..5 {
        let more = h.buffer(40);
        h.add(0, &[], &[(more, 40)]);
        h.kick_if_asked(0);
        assert_eq!((h.wait_used(0).1, h.wait_used(0).1), (40, 32));
        assert_eq!(h.bytes(more, 32), frame(60, n)[40..]);
        let again = h.buffer(40);
        h.add(0, &[], &[(again, 40)]);
        h.kick_if_asked(0);
    }
}

#[test]
fn without_merging_a_frame_needs_a_buffer_that_holds_it() {
    let (mut h, far) = adapter(!feature::MRG_RXBUF);
    let buffer = h.buffer(1526);
    h.add(0, &[], &[(buffer, 1526)]);
    h.kick(0);
    far.send(&frame(2000, 1)).unwrap();
    far.send(&frame(1000, 2)).unwrap();
    assert_eq!(h.wait_used(0).1, 1012, "the first is dropped");
    assert_eq!(h.bytes(buffer + 10, 2), 1u16.to_le_bytes());
    assert_eq!(h.bytes(buffer + 12, 1000), frame(1000, 2)[12..]);
}

#[test]
fn a_receive_buffer_that_cannot_be_written_breaks_the_device() {
    let (mut h, far) = adapter(u64::MAX);
    let buffer = h.buffer(2000);
    h.add(0, &[(buffer, 2000)], &[]);
    h.kick(0);
    far.send(&frame(60, 1)).unwrap();
    h.wait_needs_reset();
}

#[test]
fn a_pulled_cable_is_told_and_drops_frames() {
    let (mut h, far) = adapter(u64::MAX);
    let at = h.parts.device.unwrap();
    assert_eq!((h.bar::<6>(at), h.bar::<2>(at + 6)), (MAC, [1, 0]));
    let generation = h.bar::<1>(h.parts.common + 0x15);
    h.function.change(|net| net.set_link(Link::Down));
    assert!(h.router.wait(0, PATIENCE), "the configuration vector tells");
    assert_eq!(h.bar::<2>(at + 6), [0, 0]);
    assert_ne!(h.bar::<1>(h.parts.common + 0x15), generation);
    let out = h.buffer_with(&frame(60, 1));
    h.request(1, &[(out, 72)], &[]);
    assert!(nothing_received(&far));
    let buffer = h.buffer(2000);
    h.add(0, &[], &[(buffer, 2000)]);
    h.kick(0);
    far.send(&frame(60, 1)).unwrap();
    assert!(!h.router.wait(1, Duration::from_millis(50)));
    h.function.change(|net| net.set_link(Link::Up));
    far.send(&frame(61, 2)).unwrap();
    assert_eq!(h.wait_used(0).1, 73);
}

#[test]
fn features_that_need_others_are_refused_alone() {
    let net = Net::new(Tap::stand_in(UnixDatagram::pair().unwrap().0.into()), MAC);
    assert!(net.accepts(ALWAYS | OFFLOADS));
    assert!(net.accepts(0));
    for bad in [
        feature::GUEST_TSO4,
        feature::HOST_TSO6,
        feature::GUEST_CSUM | feature::GUEST_ECN,
        feature::HOST_ECN | feature::CSUM,
    ] {
        assert!(!net.accepts(bad), "{bad:#x}");
    }
}

#[test]
fn traffic_goes_on_after_a_move() {
    let (mut h, far) = adapter(u64::MAX);
    let out = h.buffer_with(&frame(60, 1));
    h.request(1, &[(out, 72)], &[]);
    assert_eq!(far.recv(&mut [0; 100]).unwrap(), 72);
    let buffer = h.buffer(2000);
    h.add(0, &[], &[(buffer, 2000)]);
    let (ours, far) = UnixDatagram::pair().unwrap();
    let mut h = h.moved(Tap::stand_in(ours.into())).unwrap();
    far.send(&frame(80, 3)).unwrap();
    h.function.resume();
    assert_eq!(h.wait_used(0).1, 92);
    assert_eq!(h.bytes(buffer + 12, 80), frame(80, 3)[12..]);
    h.request(1, &[(out, 72)], &[]);
    assert_eq!(far.recv(&mut [0; 100]).unwrap(), 72);
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Tap::new(file.into()), Err(tap::TapError::NoTap(_))));
}

/// A tap in a network namespace of this thread's own, or `None` where that may not be had.
fn real_tap(flags: libc::c_int) -> Option<std::fs::File> {
    let namespace = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
    let tap = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match (namespace, tap) {
        (Ok(()), Ok(tap)) => {
            crate::virtio::sys::attach_tun(tap.as_fd(), flags).unwrap();
            Some(tap)
        }
        other => {
            eprintln!("SKIPPED: no tap without root and /dev/net/tun: {other:?}");
            None
        }
    }
}

#[test]
fn a_real_tap_takes_headers_and_offloads() {
    let Some(tap) = real_tap(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) else { return };
    let tap = Tap::new(tap.into()).unwrap();
    assert!(tap.has_offloads());
    tap.set_offloads(OFFLOADS).unwrap();
    tap.set_offloads(0).unwrap();
    let net = Net::new(tap, MAC);
    assert_eq!(net.features(), ALWAYS | OFFLOADS);
}

#[test]
fn a_tap_that_was_attached_without_headers_is_refused() {
    for flags in [libc::IFF_TAP, libc::IFF_TUN | libc::IFF_VNET_HDR] {
        let Some(tap) = real_tap(flags | libc::IFF_NO_PI) else { return };
        let refused = Tap::new(tap.into());
        assert!(matches!(refused, Err(tap::TapError::Flags(_))), "{flags:#x}: {refused:?}");
    }
}
