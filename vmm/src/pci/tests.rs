//! A bus with functions on it, as a guest's enumeration sees it.

use super::access::{ConfigPorts, Ecam};
use super::config_space::{BarWidth, ConfigSpace, Identity};
use super::*;
use crate::devices::saved::{BadState, Piece, SavePiece, Saved};
use keelson_vmm_control::StateSet;
use proptest::prelude::*;

const WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
const HIGH: Range<u64> = 0x1_0000_0000..0x2_0000_0000;

/// A function with one BAR, which reads as its number and remembers where it was put.
struct Plain {
    space: ConfigSpace,
    number: u8,
    moves: Vec<Option<u64>>,
}

impl PciFunction for Plain {
    fn config(&self) -> &ConfigSpace {
        &self.space
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }
    fn bar_read(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(self.number);
    }
    fn bar_write(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}
    fn bar_moved(&mut self, _bar: usize, address: Option<u64>) {
        self.moves.push(address);
    }
    fn reset(&mut self) {
        self.space.reset();
    }
    fn pause(&mut self) {}
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn resume(&mut self) {}
}

impl SavePiece for Plain {
    fn kind(&self) -> &'static str {
        "plain"
    }
    fn piece(&self, _set: StateSet) -> Result<Piece, BadState> {
        Ok(Piece { kind: "plain", version: 0, body: self.space.bytes().to_vec() })
    }
}

fn plain(number: u8, size: u64) -> Arc<Mutex<Plain>> {
    let id = Identity {
        vendor: 0x1234,
        device: number.into(),
        revision: 0,
        class: 0,
        subsystem_vendor: 0,
        subsystem: 0,
    };
    let mut space = ConfigSpace::new(id);
    space.add_memory_bar(0, size, BarWidth::Bits64);
    Arc::new(Mutex::new(Plain { space, number, moves: Vec::new() }))
}

struct Rig {
    mmio: Arc<Bus>,
    bus: Arc<Mutex<PciBus>>,
    ecam: Ecam,
    functions: Vec<Arc<Mutex<Plain>>>,
}

/// Functions of 32 KiB in the slots 1, 2 and so on.
fn rig(count: u8) -> Rig {
    let mmio = Arc::new(Bus::new());
    let bus = Arc::new(Mutex::new(PciBus::new(&mmio, WINDOW, Some(HIGH))));
    let functions: Vec<_> = (1..=count).map(|n| plain(n, 0x8000)).collect();
    for (slot, function) in (1..).zip(&functions) {
        bus.lock().unwrap().add(slot, Arc::clone(function) as SharedFunction).unwrap();
    }
    Rig { mmio, ecam: Ecam::new(Arc::clone(&bus)), bus, functions }
}

impl Rig {
    fn write(&mut self, slot: u64, register: u64, data: &[u8]) {
        self.ecam.write(slot << 15 | register, data);
    }
    fn read(&mut self, slot: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        self.ecam.read(slot << 15 | register, &mut data);
        u32::from_le_bytes(data)
    }
    /// Who answers at an address.
    fn who(&self, address: u64) -> Option<u8> {
        let mut data = [0];
        self.mmio.read(address, &mut data).then_some(data[0])
    }
    fn home(slot: u64) -> u64 {
        WINDOW.start + slot * SLOT_WINDOW
    }
}

#[test]
fn a_bus_has_a_bridge_and_what_was_added() {
    let mut r = rig(2);
    assert_eq!((r.read(0, 0), r.read(0, 8) >> 16), (0x0008_1b36, 0x0600));
    assert_eq!((r.read(1, 0), r.read(2, 0)), (0x0001_1234, 0x0002_1234));
    assert_eq!(r.read(3, 0), u32::MAX, "an empty slot");
    assert_eq!(r.read(1, 0x1000), u32::MAX, "function 1 of a slot");
    let mut quad = [0; 8];
    r.ecam.read(1 << 15 | 0xffc, &mut quad);
    assert_eq!(quad, [0xff; 8], "an access across the end of a function");
    let add = |slot, size| r.bus.lock().unwrap().add(slot, plain(9, size));
    assert_eq!(add(0, 16), Err(PciError::NoSuchSlot { slot: 0 }));
    assert_eq!(add(32, 16), Err(PciError::NoSuchSlot { slot: 32 }));
    assert_eq!(add(1, 16), Err(PciError::SlotTaken { slot: 1 }));
    assert_eq!(add(5, 2 << 20), Err(PciError::BarsTooLarge { slot: 5 }));
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let mut r = rig(1);
    let mut ports = ConfigPorts::new(Arc::clone(&r.bus));
    let mut data = [0; 4];
    ports.write(0, &(1u32 << 31 | 1 << 11).to_le_bytes());
    ports.read(4, &mut data);
    assert_eq!(u32::from_le_bytes(data), r.read(1, 0));
    let mut half = [0; 2];
    ports.read(6, &mut half);
    assert_eq!(half, [1, 0]);
    ports.write(0, &(1u32 << 31 | 1 << 11 | 0x3c).to_le_bytes());
    ports.write(4, &[11]);
    assert_eq!(r.read(1, 0x3c) & 0xff, 11);
    for elsewhere in [1u32 << 11, 1 << 31 | 1 << 16 | 1 << 11, 1 << 31 | 1 << 11 | 1 << 8] {
        ports.write(0, &elsewhere.to_le_bytes());
        ports.read(4, &mut data);
        assert_eq!(data, [0xff; 4], "{elsewhere:#x}: not enabled, another bus, another function");
    }
    ports.write(1, &[0x0e]);
    ports.read(0, &mut data);
    assert_eq!(
        u32::from_le_bytes(data),
        1 << 31 | 1 << 11 | 1 << 8,
        "a byte at 0xcf9 is not the address register"
    );
    let again = ConfigPorts::restore(ports.save(), Arc::clone(&r.bus)).unwrap();
    assert_eq!(again.save(), ports.save());
    let odd = crate::devices::saved::from_body(&[1]).unwrap();
    assert!(ConfigPorts::restore(odd, Arc::clone(&r.bus)).is_err());
}

#[test]
fn a_bar_answers_where_the_guest_puts_it_while_decoding_is_on() {
    let mut r = rig(1);
    let home = Rig::home(1);
    assert_eq!(r.who(home), None, "decoding is off at power-on");
    r.write(1, 4, &[2, 0]);
    assert_eq!((r.who(home), r.who(home + 0x7fff), r.who(home + 0x8000)), (Some(1), Some(1), None));
    r.write(1, 0x10, &0xd000_0000u32.to_le_bytes());
    assert_eq!((r.who(home), r.who(0xd000_0000)), (None, Some(1)));
    r.write(1, 4, &[0, 0]);
    assert_eq!(r.who(0xd000_0000), None);
    r.write(1, 0x10, &HIGH.start.to_le_bytes());
    r.write(1, 4, &[2, 0]);
    assert_eq!(r.who(HIGH.start), Some(1));
    let expected = [Some(home), None, Some(0xd000_0000), None, Some(HIGH.start)];
    assert_eq!(r.functions[0].lock().unwrap().moves, expected);
    r.bus.lock().unwrap().reset();
    assert_eq!((r.who(HIGH.start), r.who(home)), (None, None));
    r.write(1, 4, &[2, 0]);
    assert_eq!(r.who(home), Some(1), "a reset puts it back");
}

#[test]
fn a_bar_outside_the_windows_answers_nowhere() {
    let mut r = rig(1);
    r.write(1, 4, &[2, 0]);
    for address in [0u64, 0x10_0000, WINDOW.start - 0x8000, WINDOW.end, 0xfee0_0000, HIGH.end, !0x7fff] {
        r.write(1, 0x10, &address.to_le_bytes());
        assert_eq!(r.who(address), None, "{address:#x}");
        assert!(!r.mmio.write(Rig::home(1), &[0]));
    }
}

#[test]
fn a_bar_that_lies_on_another_comes_to_light_when_that_one_moves() {
    let mut r = rig(2);
    r.write(1, 4, &[2, 0]);
    r.write(2, 4, &[2, 0]);
    r.write(2, 0x10, &Rig::home(1).to_le_bytes());
    assert_eq!((r.who(Rig::home(1)), r.who(Rig::home(2))), (Some(1), None));
    r.write(1, 0x10, &0xd000_0000u64.to_le_bytes());
    assert_eq!((r.who(Rig::home(1)), r.who(0xd000_0000)), (Some(2), Some(1)));
    // Two that change places need a step between, as on any bus.
    r.write(1, 4, &[0, 0]);
    r.write(2, 4, &[0, 0]);
    assert_eq!((r.who(Rig::home(1)), r.who(0xd000_0000)), (None, None));
}

#[test]
fn a_restored_function_keeps_its_address() {
    let function = plain(7, 0x8000);
    function.lock().unwrap().space.set_bar(0, 0xd000_0000);
    function.lock().unwrap().space.write(4, &[2, 0]);
    let mmio = Arc::new(Bus::new());
    let mut bus = PciBus::new(&mmio, WINDOW, None);
    bus.add_restored(4, Arc::clone(&function) as SharedFunction).unwrap();
    assert!(mmio.write(0xd000_0000, &[0]));
    assert_eq!(function.lock().unwrap().moves, [Some(0xd000_0000)]);
}

proptest! {
    /// The MMIO map is what the registers say, whatever is written to them: a BAR that is decoded inside a window answers, unless it lies
    /// on another one.
    #[test]
    fn the_map_follows_the_registers(writes in prop::collection::vec((0u64..4, 0u64..0x40, prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 1..80)) {
        let mut r = rig(3);
        for (slot, register, data, sane) in writes {
            if sane {
                let low = 0xc000_0000u32 + (u32::from(data[0]) & 3) * 0x8000;
                r.write(slot, 0x10, &u64::from(low).to_le_bytes());
                r.write(slot, 4, &[2, 0]);
            } else {
                r.write(slot, register, &data);
            }
            let decoded: Vec<_> = r.functions.iter().map(|f| f.lock().unwrap().space.decoded(0)).collect();
            for (number, address) in (1u8..).zip(&decoded) {
                let Some(address) = address else { continue };
                let inside = [WINDOW, HIGH].iter().any(|w| w.contains(address) && address + 0x8000 <= w.end);
                let shared = decoded.iter().filter(|d| *d == &Some(*address)).count() > 1;
                let who = r.who(*address);
                if !inside {
                    prop_assert_eq!(who, None);
                } else if shared {
                    prop_assert!(who.is_some());
                } else {
                    prop_assert_eq!(who, Some(number));
                }
            }
        }
    }
}
