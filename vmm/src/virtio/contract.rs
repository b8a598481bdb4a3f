//! What every device must do, whatever its guest does: the same tests for each of them.

use std::io::Write;
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::VirtioDevice;
use super::block::Block;
use super::net::Net;
use super::net::tap::Tap;
use super::rng::Rng;
use super::testing::{Desc, Harness, INDIRECT, MEMORY, NEXT, WRITE};
use super::transport::status;
use crate::pci::function::PciFunction;

/// A device under test: how to make one, and a request that works.
pub(crate) trait Subject: VirtioDevice {
    /// The queue that serves requests without anything from outside.
    const QUEUE: u16;
    fn make() -> Self;
    fn host() -> Self::Host;
    /// Sends a good request and sees it answered.
    fn good(h: &mut Harness<Self>);
    /// Buffers of the wrong direction: readable and writable lengths of a chain that breaks the device.
    const WRONG: Option<(&'static [u32], &'static [u32])>;
}

impl Subject for Block {
    const QUEUE: u16 = 0;
    fn make() -> Self {
        Self::new(Self::host(), false, "contract").unwrap()
    }
    fn host() -> std::fs::File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x5a; 4096]).unwrap();
        file
    }
    fn good(h: &mut Harness<Self>) {
        let (header, data, status) = (h.buffer_with(&[0; 16]), h.buffer(512), h.buffer_with(&[0xee]));
        assert_eq!(h.request(0, &[(header, 16)], &[(data, 512), (status, 1)]), 513);
        assert_eq!(h.bytes(data, 512), [0x5a; 512]);
    }
    const WRONG: Option<(&'static [u32], &'static [u32])> = Some((&[16, 512], &[]));
}

impl Subject for Net {
    const QUEUE: u16 = 1;
    fn make() -> Self {
        Self::new(Self::host(), [2, 0, 0, 0, 0, 9])
    }
    fn host() -> Tap {
        Tap::stand_in(UnixDatagram::pair().unwrap().0.into())
    }
    fn good(h: &mut Harness<Self>) {
        let frame = h.buffer_with(&[0; 80]);
        assert_eq!(h.request(1, &[(frame, 80)], &[]), 0);
    }
    // A frame that cannot be read is a frame of no length, which is dropped.
    const WRONG: Option<(&'static [u32], &'static [u32])> = None;
}

impl Subject for Rng {
    const QUEUE: u16 = 0;
    fn make() -> Self {
        Self::new()
    }
    fn host() {}
    fn good(h: &mut Harness<Self>) {
        let buffer = h.buffer(64);
        assert_eq!(h.request(0, &[], &[(buffer, 64)]), 64);
    }
    const WRONG: Option<(&'static [u32], &'static [u32])> = Some((&[64], &[]));
}

fn up<D: Subject>() -> Harness<D> {
    let mut h = Harness::new(D::make());
    h.bring_up(u64::MAX);
    h
}

/// After whatever happened: the device resets, and works.
fn heals<D: Subject>(h: &mut Harness<D>) {
    h.set_status(0);
    assert_eq!(h.status(), 0);
    h.bring_up(u64::MAX);
    D::good(h);
}

fn resets_and_works_again<D: Subject>() {
    let mut h = up::<D>();
    D::good(&mut h);
    heals(&mut h);
    h.function.pause();
    h.function.pause();
    h.function.resume();
    h.function.resume();
    D::good(&mut h);
    h.function.reset();
    assert_eq!((h.status(), h.config::<2>(4)), (0, [0, 0]), "a machine's reset switches decoding off");
    heals(&mut h);
}

/// With and without EVENT_IDX and INDIRECT_DESC.
fn works_with_any_common_features<D: Subject>() {
    for mask in [0, super::feature::EVENT_IDX, super::feature::INDIRECT_DESC, u64::MAX] {
        let mut h = Harness::new(D::make());
        h.bring_up(mask);
        for _ in 0..300 {
            D::good(&mut h);
        }
    }
}

fn bad_chains_break_the_device_until_a_reset<D: Subject>() {
    let size = *D::KIND_OF_DEVICE.queues.last().unwrap();
    let one = |address, length, flags, next| vec![Desc { address, length, flags, next }];
    let ok = 2 << 20;
    let table = 3 << 20;
    let nested = Desc { address: table, length: 16, flags: INDIRECT, next: 0 };
    // What it is, the head, the ring's table, and a table for indirection.
    let cases: Vec<(&str, u16, Vec<Desc>, Vec<Desc>)> = vec![
        ("a loop", 0, one(ok, 16, NEXT, 0), vec![]),
        ("a loop of writable ones", 0, one(ok, 16, NEXT | WRITE, 0), vec![]),
        ("a next beyond the table", 0, one(ok, 16, NEXT, size), vec![]),
        ("a head beyond the table", size, one(ok, 16, 0, 0), vec![]),
        ("the largest head", u16::MAX, one(ok, 16, 0, 0), vec![]),
        ("a buffer across the end of RAM", 0, one(MEMORY - 8, 16, 0, 0), vec![]),
        ("a writable buffer across the end of RAM", 0, one(MEMORY - 8, 16, WRITE, 0), vec![]),
        ("a buffer outside RAM", 0, one(1 << 40, 16, 0, 0), vec![]),
        ("a buffer that wraps", 0, one(u64::MAX - 8, 16, WRITE, 0), vec![]),
        ("a huge buffer", 0, one(0, u32::MAX, 0, 0), vec![]),
        (
            "readable behind writable",
            0,
            vec![
                Desc { address: ok, length: 16, flags: NEXT | WRITE, next: 1 },
                Desc { address: ok, length: 16, flags: 0, next: 0 },
            ],
            vec![],
        ),
        ("an empty table", 0, one(table, 0, INDIRECT, 0), vec![]),
        ("a table of half an entry", 0, one(table, 8, INDIRECT, 0), vec![]),
        ("a table outside RAM", 0, one(1 << 40, 16, INDIRECT, 0), vec![]),
        ("a table that wraps", 0, one(u64::MAX - 4, 16, INDIRECT, 0), vec![]),
        ("a table of more than 65535 entries", 0, one(table, 16 << 16, INDIRECT, 0), vec![]),
        ("a table in a table", 0, one(table, 16, INDIRECT, 0), vec![nested]),
        ("a loop in a table", 0, one(table, 16, INDIRECT, 0), one(ok, 16, NEXT, 0)),
        (
            "too many descriptors",
            0,
            one(table, 16 * 600, INDIRECT, 0),
            (0..600)
                .map(|i| Desc { address: ok, length: 1, flags: if i < 599 { NEXT } else { 0 }, next: i + 1 })
                .collect(),
        ),
    ];
    let mut h = up::<D>();
    for (what, head, ring, indirect) in cases {
        let at = h.descriptor_table(D::QUEUE);
        for (base, descriptors) in [(at, &ring), (table, &indirect)] {
            for (index, descriptor) in (0..).zip(descriptors) {
                h.write_descriptor(base, index, *descriptor);
            }
        }
        h.publish(D::QUEUE, head);
        h.kick(D::QUEUE);
        assert!(h.router.wait(0, super::testing::PATIENCE), "{what}: {} goes on", D::KIND_OF_DEVICE.name);
        assert_ne!(h.status() & status::DEVICE_NEEDS_RESET, 0, "{what}");
        assert_eq!(h.used(D::QUEUE), None, "{what}");
        heals(&mut h);
    }
    if let Some((readable, writable)) = D::WRONG {
        let mut buffers = |lengths: &[u32]| lengths.iter().map(|l| (h.buffer(*l), *l)).collect::<Vec<_>>();
        let (readable, writable) = (buffers(readable), buffers(writable));
        h.add(D::QUEUE, &readable, &writable);
        h.kick(D::QUEUE);
        h.wait_needs_reset();
        heals(&mut h);
    }
}

fn an_index_that_is_ahead_of_the_ring_breaks_the_device<D: Subject>() {
    let mut h = up::<D>();
    let size = *D::KIND_OF_DEVICE.queues.last().unwrap();
    h.set_avail_index(D::QUEUE, size + 1);
    h.kick(D::QUEUE);
    h.wait_needs_reset();
    // It stands still: more doorbells change nothing, and it can be paused, saved and moved as it is.
    h.kick(D::QUEUE);
    let mut h = h.moved(D::host()).unwrap();
    h.function.resume();
    assert_ne!(h.status() & status::DEVICE_NEEDS_RESET, 0);
    heals(&mut h);
}

fn an_empty_buffer_does_no_harm<D: Subject>() {
    let mut h = up::<D>();
    h.add(D::QUEUE, &[(1 << 20, 0)], &[(1 << 20, 0)]);
    h.kick(D::QUEUE);
    while h.used(D::QUEUE).is_none() && h.status() & status::DEVICE_NEEDS_RESET == 0 {
        std::thread::yield_now();
    }
    heals(&mut h);
}

fn moves_in_any_state<D: Subject>() {
    let h = Harness::new(D::make());
    let mut h = h.moved(D::host()).unwrap();
    h.function.resume();
    h.negotiate(u64::MAX);
    let mut h = h.moved(D::host()).unwrap();
    h.function.resume();
    h.bring_up(u64::MAX);
    D::good(&mut h);
    for _ in 0..3 {
        h = h.moved(D::host()).unwrap();
        h.function.resume();
        D::good(&mut h);
    }
}

/// One thing that a guest can do.
#[derive(Debug, Clone)]
enum Act {
    ConfigRead(u16, usize),
    ConfigWrite(u16, Vec<u8>),
    BarRead(u64, usize),
    BarWrite(u64, Vec<u8>),
    Ring(Vec<u8>),
    Kick,
    PauseAndResume,
}

fn act() -> impl Strategy<Value = Act> {
    let length = prop::sample::select(vec![1usize, 2, 4, 8]);
    let data =
        prop::sample::select(vec![1usize, 2, 4, 8]).prop_flat_map(|l| prop::collection::vec(any::<u8>(), l));
    // Natural places more often than any place.
    let offset = prop_oneof![
        0u64..0x40,
        (0u64..0x40).prop_map(|o| o & !3),
        0x1000u64..0x1004,
        0x2000u64..0x2020,
        0x3000u64..0x3010,
        0x4000u64..0x4040,
        0u64..0x8000
    ];
    let status =
        prop::sample::select(vec![0u8, 1, 3, 8, 11, 15, 255]).prop_map(|s| Act::BarWrite(0x14, vec![s]));
    prop_oneof![
        (0u16..4096, length.clone()).prop_map(|(r, l)| Act::ConfigRead(r, l)),
        (0u16..256, data.clone()).prop_map(|(r, d)| Act::ConfigWrite(r, d)),
        (offset.clone(), length).prop_map(|(o, l)| Act::BarRead(o, l)),
        (offset, data).prop_map(|(o, d)| Act::BarWrite(o, d)),
        status,
        prop::collection::vec(any::<u8>(), 64).prop_map(Act::Ring),
        Just(Act::Kick),
        Just(Act::PauseAndResume),
    ]
}

fn perform<D: Subject>(h: &mut Harness<D>, act: Act) {
    match act {
        Act::ConfigRead(register, length) => h.function.config_read(register, &mut vec![0; length]),
        Act::ConfigWrite(register, data) => h.function.config_write(register, &data),
        Act::BarRead(offset, length) => h.function.bar_read(0, offset, &mut vec![0; length]),
        Act::BarWrite(offset, data) => h.function.bar_write(0, offset, &data),
        Act::Ring(bytes) => {
            let at = h.descriptor_table(D::QUEUE);
            for ring in [at, at + 0x4000, at + 0x8000] {
                vm_memory::Bytes::write_slice(&h.memory, &bytes, vm_memory::GuestAddress(ring)).unwrap();
            }
        }
        Act::Kick => h.kick(D::QUEUE),
        Act::PauseAndResume => {
            h.function.pause();
            h.function.resume();
        }
    }
}

fn survives<D: Subject>(acts: Vec<Act>, running: bool) {
    let mut h = Harness::new(D::make());
    if running {
        h.bring_up(u64::MAX);
    }
    for act in acts {
        perform(&mut h, act);
    }
    // Whatever it did, the state can travel, and a reset heals it.
    let mut h = h.moved(D::host()).unwrap();
    h.function.resume();
    h.function.reset();
    heals(&mut h);
}

macro_rules! contract {
    ($($module:ident: $device:ty),+) => {$(
        mod $module {
            use super::*;

            #[test]
            fn resets_and_works_again() {
                super::resets_and_works_again::<$device>();
            }
            #[test]
            fn works_with_any_common_features() {
                super::works_with_any_common_features::<$device>();
            }
            #[test]
            fn bad_chains_break_the_device_until_a_reset() {
                super::bad_chains_break_the_device_until_a_reset::<$device>();
            }
            #[test]
            fn an_index_that_is_ahead_of_the_ring_breaks_the_device() {
                super::an_index_that_is_ahead_of_the_ring_breaks_the_device::<$device>();
            }
            #[test]
            fn an_empty_buffer_does_no_harm() {
                super::an_empty_buffer_does_no_harm::<$device>();
            }
            #[test]
            fn moves_in_any_state() {
                super::moves_in_any_state::<$device>();
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(64))]
                #[test]
                fn survives_any_guest(acts in prop::collection::vec(act(), 1..60), running: bool) {
                    super::survives::<$device>(acts, running);
                }
            }
        }
    )+};
}

contract!(block: Block, net: Net, rng: Rng);
