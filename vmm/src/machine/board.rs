//! A board: one virtual machine of KVM with its vCPUs and devices, from power-on to power-off or reset. A reset is a new board
//! around the same memory: so every register begins as at power-on, and no device needs code to reset itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::Gate;
use super::slots::{self, Wires};
use super::vcpu::{self, Surroundings};
use super::{BuildError, GuestEvent, Parts, TellGuest};
use crate::boot::BootError;
use crate::devices::acpi_pm::{AcpiPm, PM_PORTS, PM1_EVENT, SCI};
use crate::devices::bus::Bus;
use crate::devices::reset::{KEYBOARD_COMMAND, KeyboardReset, PCI_CONFIG, PCI_CONFIG_PORTS, PciConfigPorts};
use crate::devices::rtc::{INDEX_PORT, Rtc, host_clock};
use crate::devices::serial::{COM1, COM1_IRQ, COM1_PORTS, SerialPort};
use crate::devices::{Ask, LevelLine, Outcome};
use crate::kvm::{Entry, KvmError, KvmMsi, doing, set_up};
use crate::memory::{ECAM_BASE, ECAM_SIZE, GuestRam, MMIO32_BASE, MMIO32_END};
use crate::pci::PciBus;
use crate::pci::access::{ConfigPorts, Ecam};

/// How long vCPUs may take to come out of the guest.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A running or paused board.
pub(super) struct Board {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    power: Arc<Mutex<AcpiPm>>,
    pci: Arc<Mutex<PciBus>>,
    /// Held for as long as KVM may write to it: see `sys::set_memory_slot`. The fields after it are dropped later still.
    _vm: Arc<VmFd>,
    ram: GuestRam,
    /// When it was built.
    pub(super) born: Instant,
}

impl Board {
    /// Builds the machine and loads what it boots. The vCPUs wait until [`Board::resume`].
    pub(super) fn build(
        parts: &mut Parts,
        tell: TellGuest,
        first_run: &Arc<OnceLock<Instant>>,
    ) -> Result<Self, BuildError> {
        let ram = parts.memory.ram.clone();
        let (vm, entry) = create_and_load(parts, &ram)?;
        let vm = Arc::new(vm);
        let gate = Arc::new(Gate::new(usize::try_from(parts.config.vcpus).unwrap_or(usize::MAX)));
        let asked = Arc::new(AtomicBool::new(false));
        let ask = asker(&gate, &asked, &tell);

        let (ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        let power = Arc::new(Mutex::new(AcpiPm::new(level_line(&vm, SCI.into()), Arc::clone(&ask))));
        let serial = SerialPort::new(edge_line(&vm, COM1_IRQ)?, Arc::clone(&parts.console));
        let serial = Arc::new(Mutex::new(serial));
        let mut pci = PciBus::new(&mmio, MMIO32_BASE..MMIO32_END, None);
        let msi = Arc::new(KvmMsi::new(Arc::clone(&vm)));
        let wires = Wires { ram: &ram, router: Arc::clone(&msi) as _, doorbells: msi };
        slots::plug(&mut pci, &parts.config, &parts.disks, &parts.taps, &wires)?;
        let pci = Arc::new(Mutex::new(pci));
        let pci_ports =
            PciConfigPorts::new(Arc::new(Mutex::new(ConfigPorts::new(Arc::clone(&pci)))), Arc::clone(&ask));
        ports.insert(PM1_EVENT.into(), PM_PORTS.into(), Arc::clone(&power) as _)?;
        ports.insert(COM1.into(), COM1_PORTS.into(), Arc::clone(&serial) as _)?;
        ports.insert(INDEX_PORT.into(), 2, Arc::new(Mutex::new(Rtc::new(host_clock()))))?;
        ports.insert(KEYBOARD_COMMAND.into(), 1, Arc::new(Mutex::new(KeyboardReset::new(ask))))?;
        ports.insert(PCI_CONFIG.into(), PCI_CONFIG_PORTS.into(), pci_ports)?;
        mmio.insert(ECAM_BASE, ECAM_SIZE, Arc::new(Mutex::new(Ecam::new(Arc::clone(&pci)))))?;

        let around = Arc::new(Surroundings {
            ports,
            mmio,
            gate: Arc::clone(&gate),
            asked,
            tell,
            first_run: Arc::clone(first_run),
        });
        let mut vcpus = Vec::new();
        let processor = parts.host.processor();
        for index in 0..parts.config.vcpus {
            let id = processor.apic_id(index);
            let vcpu = vm.create_vcpu(id.into()).map_err(doing("create a vCPU"))?;
            set_up(&vcpu, index, processor, (index == 0).then_some(entry))?;
            vcpus.push(vcpu);
        }
        let mut board = Self { gate, threads: vec![], power, pci, _vm: vm, ram, born: Instant::now() };
        for (id, vcpu) in (0..).zip(vcpus) {
            let affinity = parts.config.cpu.affinity_of(id);
            let started = vcpu::start(id, vcpu, Arc::clone(&around), affinity);
            board
                .threads
                .push(started.map_err(|source| KvmError::System { what: "start a vCPU's thread", source })?);
        }
        parts.console.attach(&serial);
        Ok(board)
    }

    /// Lets the vCPUs run.
    pub(super) fn resume(&self) {
        self.pci().resume();
        self.gate.open();
    }

    /// Stops all vCPUs where no exit is half done; false when one does not come out in time (the others go on then).
    pub(super) fn pause(&self) -> bool {
        self.gate.hold();
        self.kick();
        let stopped = self.gate.wait_empty(STOP_WITHIN);
        if stopped {
            self.pci().pause();
        } else {
            self.gate.open();
        }
        stopped
    }

    /// Presses the power button.
    pub(super) fn press_power_button(&self) {
        self.power.lock().unwrap_or_else(PoisonError::into_inner).press();
    }

    fn pci(&self) -> MutexGuard<'_, PciBus> {
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        self.threads.iter().for_each(crate::sys::kick);
    }

    /// Ends the board. False when a vCPU does not come out; its thread then keeps the virtual machine alive until the process ends.
    pub(super) fn end(mut self) -> bool {
        self.shut()
    }

    fn shut(&mut self) -> bool {
        self.gate.shut();
        self.kick();
        let stopped = self.gate.wait_empty(STOP_WITHIN);
        // No device works on for a board that has ended: the next one uses the same disks and taps.
        self.pci().pause();
        if stopped {
            self.threads.drain(..).for_each(|thread| drop(thread.join()));
        } else {
            // The guest still runs in that vCPU, so its memory must stay where it is until the process ends.
            std::mem::forget(self.ram.clone());
        }
        stopped
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // Also when a board is given up half-built: its threads wait at the gate.
        self.gate.shut();
        self.kick();
    }
}

/// Creates the virtual machine and loads what it boots, at the same time: the kernel waits several milliseconds for its other
/// processors (RCU) while it makes interrupt controllers and timer, and a stock kernel takes as long to copy.
fn create_and_load(parts: &mut Parts, ram: &GuestRam) -> Result<(VmFd, Entry), BuildError> {
    let Parts { config, host, payload, .. } = parts;
    let ids: Vec<u32> = (0..config.vcpus).map(|n| host.processor().apic_id(n)).collect();
    std::thread::scope(|scope| {
        let load = move || {
            let rsdp = crate::acpi::write(ram, &ids)?;
            crate::boot::load(ram, payload, rsdp)
        };
        let loader = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, load);
        let loader = loader
            .map_err(|source| KvmError::System { what: "start the thread that loads the kernel", source })?;
        let vm = host.create_vm(ram);
        // A panic has ended the process already, in all but tests.
        let entry =
            loader.join().unwrap_or_else(|_| Err(BootError::Damaged { problem: "its loader failed".into() }));
        Ok((vm?, entry?))
    })
}

/// How a device ends the board: the gate shuts at once, so that no vCPU enters the guest again.
fn asker(gate: &Arc<Gate>, asked: &Arc<AtomicBool>, tell: &TellGuest) -> Ask {
    let (gate, asked, tell) = (Arc::clone(gate), Arc::clone(asked), Arc::clone(tell));
    Arc::new(move |outcome| {
        gate.shut();
        if !asked.swap(true, Ordering::AcqRel) {
            tell(match outcome {
                Outcome::PowerOff => GuestEvent::PowerOff,
                Outcome::Reset => GuestEvent::Reset,
            });
        }
    })
}

fn level_line(vm: &Arc<VmFd>, gsi: u32) -> LevelLine {
    let (vm, last) = (Arc::clone(vm), AtomicBool::new(false));
    Box::new(move |high| {
        if last.swap(high, Ordering::Relaxed) != high
            && let Err(e) = vm.set_irq_line(gsi, high)
        {
            log::error!("interrupt line {gsi} could not be set: {e}");
        }
    })
}

fn edge_line(vm: &VmFd, gsi: u32) -> Result<EventFd, KvmError> {
    let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK);
    let event = event.map_err(|source| KvmError::System { what: "make an interrupt's event", source })?;
    vm.register_irqfd(&event, gsi).map_err(doing("bind an interrupt to its event"))?;
    Ok(event)
}
