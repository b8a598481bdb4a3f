//! The rules of the transport, told by a driver that keeps and breaks them.

use super::*;
use crate::virtio::feature;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{BAR, Harness};

fn harness() -> Harness<Rng> {
    Harness::new(Rng::new())
}

#[test]
fn a_driver_without_version_1_gets_no_agreement() {
    let mut h = harness();
    h.set_status(1);
    h.set_status(3);
    h.accept(feature::EVENT_IDX);
    h.set_status(11);
    assert_eq!(h.status(), 3);
    h.set_status(7);
    assert_eq!(h.status(), 3, "nor can it be ready");
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let mut h = harness();
    h.set_status(3);
    h.accept(feature::VERSION_1 | 1 << 40);
    h.set_status(11);
    assert_eq!(h.status(), 3);
    h.accept(feature::VERSION_1);
    h.set_status(11);
    assert_eq!(h.status(), 11, "a driver may try again with fewer");
    h.accept(0);
    h.common_write(8, &1u32.to_le_bytes());
    assert_eq!(h.bar::<4>(h.parts.common + 12), 1u32.to_le_bytes(), "but not after the agreement");
}

#[test]
fn a_queue_is_fixed_once_it_is_enabled() {
    let mut h = harness();
    h.negotiate(u64::MAX);
    assert_eq!((h.common_u16(0x12), h.common_u16(0x18)), (1, 64));
    h.common_write(0x18, &33u16.to_le_bytes());
    h.common_write(0x18, &128u16.to_le_bytes());
    h.common_write(0x18, &0u16.to_le_bytes());
    assert_eq!(h.common_u16(0x18), 64, "sizes that cannot be are ignored");
    h.set_up_queue(0, 16);
    h.common_write(0x18, &32u16.to_le_bytes());
    h.common_write(0x1c, &0u16.to_le_bytes());
    h.common_write(0x20, &[0xff; 4]);
    assert_eq!((h.common_u16(0x18), h.common_u16(0x1c), h.bar::<1>(h.parts.common + 0x20)), (16, 1, [0]));
    h.common_write(0x16, &7u16.to_le_bytes());
    assert_eq!(
        (h.common_u16(0x18), h.common_u16(0x1a)),
        (0, 0xffff),
        "a queue that does not exist has size 0"
    );
    h.set_status(0);
    assert_eq!(
        (h.status(), h.common_u16(0x16), h.common_u16(0x18), h.common_u16(0x1c)),
        (0, 0, 64, 0),
        "a reset frees it"
    );
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let mut h = harness();
    for (at, vector, back) in [(0x10, 1, 1), (0x10, 2, 0xffff), (0x1a, 1, 1), (0x1a, 500, 0xffff)] {
        h.common_write(at, &u16::to_le_bytes(vector));
        assert_eq!(h.common_u16(at), back);
    }
}

#[test]
fn rings_outside_ram_make_the_device_need_a_reset() {
    for (at, ring) in [(0x20, 1u64 << 40), (0x28, u64::MAX - 1), (0x30, 0xc000_0000), (0x20, 0x1_0008)] {
        let mut h = harness();
        h.negotiate(u64::MAX);
        h.enable_msix();
        h.common_write(0x10, &0u16.to_le_bytes());
        h.common_write(at, &ring.to_le_bytes());
        h.common_write(0x1c, &1u16.to_le_bytes());
        h.set_status(15);
        h.wait_needs_reset();
        h.bring_up(u64::MAX);
        let buffer = h.buffer(16);
        assert_eq!(h.request(0, &[], &[(buffer, 16)]), 16, "and a reset heals it");
    }
}

#[test]
fn without_msix_the_isr_byte_tells_and_is_cleared_by_reading() {
    let mut h = harness();
    h.bring_up(u64::MAX);
    h.function.config_write(h.parts.msix + 2, &0u16.to_le_bytes());
    let buffer = h.buffer(16);
    h.add(0, &[], &[(buffer, 16)]);
    h.kick(0);
    while h.used(0).is_none() {
        std::thread::yield_now();
    }
    // The event follows the used ring, so the worker is stopped before the byte is read.
    h.function.pause();
    assert_eq!(h.bar::<1>(h.parts.isr), [1]);
    assert_eq!(h.bar::<1>(h.parts.isr), [0]);
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let mut h = harness();
    let window = h.parts.window;
    let aim = |h: &mut Harness<Rng>, offset: u64, length: u32| {
        h.function.config_write(window + 4, &[0]);
        h.function.config_write(window + 8, &(offset as u32).to_le_bytes());
        h.function.config_write(window + 12, &length.to_le_bytes());
    };
    let status = h.parts.common + 0x14;
    aim(&mut h, status, 1);
    h.function.config_write(window + 16, &[3]);
    assert_eq!((h.status(), h.config::<1>(window + 16)), (3, [3]));
    for (offset, length) in [(status, 3), (0xffff_fffe, 4), (1, 2), (0x7fff, 2)] {
        aim(&mut h, offset, length);
        h.function.config_write(window + 16, &[0; 4]);
        assert_eq!(h.status(), 3, "a window that cannot be is not there");
    }
}

#[test]
fn doorbells_move_with_the_bar() {
    let mut h = harness();
    assert_eq!(h.doorbells.addresses(), [BAR + h.parts.notify]);
    h.function.bar_moved(0, None);
    assert!(h.doorbells.addresses().is_empty());
    h.function.bar_moved(0, Some(1 << 40));
    assert_eq!(h.doorbells.addresses(), [(1 << 40) + h.parts.notify]);
}

#[test]
fn a_doorbell_write_that_reaches_the_monitor_rings_too() {
    let mut h = harness();
    h.bring_up(u64::MAX);
    let buffer = h.buffer(16);
    h.add(0, &[], &[(buffer, 16)]);
    h.function.bar_write(0, h.parts.notify, &0u16.to_le_bytes());
    h.function.bar_write(0, h.parts.notify + 400, &0u16.to_le_bytes());
    assert_eq!(h.wait_used(0).1, 16);
}
