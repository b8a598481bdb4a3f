//! What everything that is saved must do, whatever bytes come back: the same tests for each device of a machine.
//!
//! vCPUs and what KVM keeps have tests of their own kind, beside their code: KVM judges their states.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

use super::golden;
use crate::console::Console;
use crate::devices::acpi_pm::AcpiPm;
use crate::devices::bus::{Bus, BusDevice, SharedDevice};
use crate::devices::reset::{Nothing, PciConfigPorts};
use crate::devices::rtc::Rtc;
use crate::devices::saved::{BadState, Saved, Versioned};
use crate::devices::serial::SerialPort;
use crate::devices::{Ask, LevelLine};
use crate::pci::PciBus;
use crate::pci::access::ConfigPorts;
use crate::pci::function::PciFunction;
use crate::pci::host_bridge::HostBridge;
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::net::tap::Tap;
use crate::virtio::rng::Rng;
use crate::virtio::testing::{FakeDoorbells, FakeRouter, Harness};
use crate::virtio::transport::{TransportHost, VirtioPci};

/// A device under test.
trait Subject: Saved {
    /// As at power-on.
    fn fresh() -> Self;
    /// After a fixed use by a guest, paused.
    fn used() -> Self;
    /// What a host gives it, another one each time, and the guest memory of `before`.
    fn host(before: &Self) -> Self::Host;
    /// Whatever a guest can do to it, pauses included. It must survive.
    fn shake(&mut self);
    /// The reset of the machine: a new board, or what the bus does to a function.
    fn reset(&mut self);
}

fn encoded<T: Saved>(device: &T) -> Vec<u8> {
    device.save().encode(T::State::VERSION).unwrap()
}

/// A device from the bytes of a section.
fn revived<T: Subject>(version: u16, body: &[u8], before: &T) -> Result<T, BadState> {
    T::restore(T::State::decode(version, body)?, T::host(before))
}

fn has_its_golden_layout<T: Subject>() {
    golden::check(T::KIND, &T::used().save());
}

fn is_the_same_on_another_host_and_works<T: Subject>() {
    for before in [T::fresh(), T::used()] {
        let bytes = encoded(&before);
        let mut after = revived(T::State::VERSION, &bytes, &before).unwrap();
        assert_eq!(encoded(&after), bytes, "what is restored saves as it was");
        after.shake();
        after.reset();
        assert_eq!(encoded(&after), encoded(&T::fresh()), "a reset makes it fresh");
    }
}

fn speaks_the_version_before<T: Subject>() {
    let used = T::used();
    assert_ne!(T::State::PREVIOUS, T::State::VERSION);
    let old = used.save().encode(T::State::PREVIOUS).unwrap();
    let after = revived(T::State::PREVIOUS, &old, &used).unwrap();
    assert_eq!(encoded(&after), encoded(&used));
    for unknown in [T::State::VERSION + 1, u16::MAX] {
        assert_eq!(T::State::decode(unknown, &encoded(&used)).err().map(|e| e.field), Some("version"));
        assert_eq!(used.save().encode(unknown).unwrap_err().field, "version");
    }
}

fn refuses_every_cut<T: Subject>() {
    let used = T::used();
    let bytes = encoded(&used);
    for length in 0..bytes.len() {
        assert!(revived(T::State::VERSION, &bytes[..length], &used).is_err(), "cut at {length}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(revived(T::State::VERSION, &longer, &used).is_err(), "a byte too many");
}

/// The body of another device: refused, or (two layouts may be alike) a state like any other.
fn takes_no_harm_from_a_swap<T: Subject>() {
    let used = T::used();
    for (kind, version) in KINDS.iter().filter(|(kind, _)| *kind != T::KIND) {
        if let Ok(mut device) = revived(T::State::VERSION, &golden::bytes(kind, *version), &used) {
            device.shake();
        }
    }
}

fn takes_no_harm<T: Subject>(version: u16, body: &[u8]) {
    let used = T::used();
    if let Ok(mut device) = revived(version, body, &used) {
        let bytes = encoded(&device);
        let again = revived(T::State::VERSION, &bytes, &used).expect("what was taken once is taken again");
        drop(again);
        device.shake();
        device.reset();
        device.shake();
    }
}

fn change(mut bytes: Vec<u8>, changes: Vec<(prop::sample::Index, u8)>) -> Vec<u8> {
    for (at, value) in changes {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
    }
    bytes
}

macro_rules! contract {
    ($($module:ident: $device:ty),+ $(,)?) => {
        /// Every kind of device and the version of its section.
        const KINDS: &[(&str, u16)] =
            &[$((<$device as Saved>::KIND, <<$device as Saved>::State as Versioned>::VERSION)),+];
        $(
            mod $module {
                use super::*;

                #[test]
                fn has_its_golden_layout() {
                    super::has_its_golden_layout::<$device>();
                }
                #[test]
                fn is_the_same_on_another_host_and_works() {
                    super::is_the_same_on_another_host_and_works::<$device>();
                }
                #[test]
                fn speaks_the_version_before() {
                    super::speaks_the_version_before::<$device>();
                }
                #[test]
                fn refuses_every_cut() {
                    super::refuses_every_cut::<$device>();
                }
                #[test]
                fn takes_no_harm_from_a_swap() {
                    super::takes_no_harm_from_a_swap::<$device>();
                }
                proptest! {
                    #![proptest_config(ProptestConfig::with_cases(64))]
                    #[test]
                    fn takes_no_harm_from_changes(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
                        let bytes = change(encoded(&<$device>::used()), changes);
                        super::takes_no_harm::<$device>(<<$device as Saved>::State as Versioned>::VERSION, &bytes);
                    }
                    #[test]
                    fn takes_no_harm_from_random_bytes(version in 0u16..300, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
                        super::takes_no_harm::<$device>(version, &bytes);
                    }
                }
            }
        )+
    };
}

contract!(
    serial: SerialPort,
    rtc: Rtc,
    acpi_pm: AcpiPm,
    config_ports: ConfigPorts,
    reset_control: PciConfigPorts,
    host_bridge: HostBridge,
    block: VirtioPci<Block>,
    net: VirtioPci<Net>,
    rng: VirtioPci<Rng>,
);

/// Every byte of a port device, read and written.
fn shake_ports(device: &mut impl BusDevice, ports: u64) {
    for value in [0x00, 0x5a, 0xff] {
        for port in 0..ports {
            device.write(port, &[value]);
            device.read(port, &mut [0]);
        }
    }
}

impl Subject for SerialPort {
    fn fresh() -> Self {
        let console = Arc::new(Console::new().unwrap());
        Self::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), console)
    }
    fn used() -> Self {
        let console = Arc::new(Console::new().unwrap());
        console.type_in(b"typed");
        let mut port = Self::new(EventFd::new(libc::EFD_NONBLOCK).unwrap(), console);
        for (at, value) in [(3, 0x83), (0, 1), (1, 0), (3, 3), (4, 0x0b), (1, 3)] {
            port.write(at, &[value]);
        }
        port.feed();
        port
    }
    fn host(_before: &Self) -> Self::Host {
        (EventFd::new(libc::EFD_NONBLOCK).unwrap(), Arc::new(Console::new().unwrap()))
    }
    fn shake(&mut self) {
        shake_ports(self, 8);
    }
    fn reset(&mut self) {
        *self = Self::fresh();
    }
}

impl Subject for Rtc {
    fn fresh() -> Self {
        Self::new(Box::new(|| 1_000_000_000))
    }
    fn used() -> Self {
        let mut rtc = Self::fresh();
        for (register, value) in [(0x0b, 0x06), (0x40, 0x77), (0x0a, 0x26)] {
            rtc.write(0, &[register]);
            rtc.write(1, &[value]);
        }
        rtc
    }
    fn host(_before: &Self) -> Self::Host {
        Box::new(|| 2_000_000_000)
    }
    fn shake(&mut self) {
        for register in 0..=255 {
            self.write(0, &[register]);
            shake_ports(self, 2);
        }
    }
    fn reset(&mut self) {
        *self = Self::fresh();
    }
}

fn ask() -> Ask {
    Arc::new(|_| {})
}

fn line() -> LevelLine {
    Box::new(|_| {})
}

impl Subject for AcpiPm {
    fn fresh() -> Self {
        Self::new(line(), ask())
    }
    fn used() -> Self {
        let mut pm = Self::fresh();
        pm.write(2, &[0x00, 0x01]);
        pm.press();
        pm
    }
    fn host(_before: &Self) -> Self::Host {
        (line(), ask())
    }
    fn shake(&mut self) {
        shake_ports(self, 16);
        self.press();
    }
    fn reset(&mut self) {
        *self = Self::fresh();
    }
}

fn bus() -> Arc<Mutex<PciBus>> {
    let mmio = Arc::new(Bus::new());
    Arc::new(Mutex::new(PciBus::new(&mmio, 0xc000_0000..0xe000_0000, None)))
}

impl Subject for ConfigPorts {
    fn fresh() -> Self {
        Self::new(bus())
    }
    fn used() -> Self {
        let mut ports = Self::fresh();
        ports.write(0, &0x8000_0004u32.to_le_bytes());
        ports.write(4, &[7; 4]);
        ports
    }
    fn host(_before: &Self) -> Self::Host {
        bus()
    }
    fn shake(&mut self) {
        shake_ports(self, 8);
        self.write(0, &u32::MAX.to_le_bytes());
        self.read(4, &mut [0; 4]);
    }
    fn reset(&mut self) {
        *self = Self::fresh();
    }
}

fn nothing() -> SharedDevice {
    Arc::new(Mutex::new(Nothing))
}

impl Subject for PciConfigPorts {
    fn fresh() -> Self {
        Self::new(nothing(), ask())
    }
    fn used() -> Self {
        let mut ports = Self::fresh();
        ports.write(1, &[2]);
        ports.write(1, &[0]);
        ports
    }
    fn host(_before: &Self) -> Self::Host {
        (nothing(), ask())
    }
    fn shake(&mut self) {
        shake_ports(self, 8);
    }
    fn reset(&mut self) {
        *self = Self::fresh();
    }
}

/// Configuration space, every BAR, pauses.
fn shake_function(function: &mut impl PciFunction) {
    function.resume();
    for register in (0..256).step_by(4) {
        function.config_read(register, &mut [0; 4]);
        function.config_write(register, &[0xff; 4]);
    }
    for offset in (0..0x8000u64).step_by(0x34) {
        function.bar_read(0, offset, &mut [0; 4]);
        function.bar_write(0, offset, &[0x5a; 4]);
    }
    function.pause();
    function.flush().unwrap();
    function.pause();
    function.resume();
    function.pause();
}

impl Subject for HostBridge {
    fn fresh() -> Self {
        Self::new()
    }
    fn used() -> Self {
        let mut bridge = Self::new();
        bridge.config_write(4, &[0xff, 0xff]);
        bridge
    }
    fn host(_before: &Self) -> Self::Host {}
    fn shake(&mut self) {
        shake_function(self);
    }
    fn reset(&mut self) {
        PciFunction::reset(self);
    }
}

/// The host side of a device.
trait Device: crate::virtio::contract::Subject {
    fn elsewhere() -> Self::Host;
}

impl Device for Block {
    fn elsewhere() -> std::fs::File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        file
    }
}

impl Device for Net {
    fn elsewhere() -> Tap {
        Tap::stand_in(UnixDatagram::pair().unwrap().1.into())
    }
}

impl Device for Rng {
    fn elsewhere() {}
}

impl<D: Device> Subject for VirtioPci<D> {
    fn fresh() -> Self {
        let mut function = Harness::new(D::make()).function;
        function.pause();
        function
    }
    fn used() -> Self {
        let mut harness = Harness::new(D::make());
        harness.bring_up(u64::MAX);
        D::good(&mut harness);
        harness.function.pause();
        harness.function
    }
    fn host(before: &Self) -> Self::Host {
        TransportHost {
            memory: before.memory_for_test(),
            router: Arc::new(FakeRouter::default()),
            doorbells: Arc::new(FakeDoorbells::default()),
            device: D::elsewhere(),
        }
    }
    fn shake(&mut self) {
        shake_function(self);
    }
    fn reset(&mut self) {
        PciFunction::reset(self);
    }
}
