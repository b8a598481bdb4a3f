//! A board: one virtual machine of KVM with its vCPUs and devices, from power-on to power-off or reset. A reset is a new board
//! around the same memory: so every register begins as at power-on, and no device needs code to reset itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::board_saved::{made, restored_vcpus};
use super::gate::Gate;
use super::slots::{self, Wires};
use super::vcpu::{self, Surroundings};
use super::{BuildError, GuestEvent, Parts, TellGuest};
use crate::boot::BootError;
use crate::console::Console;
use crate::devices::acpi_pm::{AcpiPm, PM_PORTS, PM1_EVENT, SCI};
use crate::devices::bus::{Bus, SharedDevice};
use crate::devices::reset::{KEYBOARD_COMMAND, KeyboardReset, PCI_CONFIG, PCI_CONFIG_PORTS, PciConfigPorts};
use crate::devices::rtc::{INDEX_PORT, Rtc, host_clock};
use crate::devices::saved::SavePiece;
use crate::devices::serial::{COM1, COM1_IRQ, COM1_PORTS, SerialPort, SharedSerial};
use crate::devices::{Ask, LevelLine, Outcome};
use crate::kvm::vcpu_saved::VcpuAbilities;
use crate::kvm::{Entry, KvmError, KvmMsi, doing, set_up};
use crate::memory::{ECAM_BASE, ECAM_SIZE, GuestRam, MMIO32_BASE, MMIO32_END};
use crate::pci::PciBus;
use crate::pci::access::{ConfigPorts, Ecam};
use crate::pci::host_bridge::HostBridge;
use crate::state::sections::Sections;

/// How long vCPUs may take to come out of the guest.
pub(super) const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A running or paused board.
pub(super) struct Board {
    pub(super) gate: Arc<Gate>,
    pub(super) threads: Vec<JoinHandle<()>>,
    power: Arc<Mutex<AcpiPm>>,
    pci: Arc<Mutex<PciBus>>,
    serial: SharedSerial,
    console: Arc<Console>,
    /// What is saved besides vCPUs, KVM's own state and PCI functions.
    pub(super) devices: Vec<Arc<Mutex<dyn SavePiece + Send>>>,
    pub(super) abilities: VcpuAbilities,
    /// Held for as long as KVM may write to it: see `sys::set_memory_slot`. The fields after it are dropped later still.
    pub(super) vm: Arc<VmFd>,
    ram: GuestRam,
    /// When it was built.
    pub(super) born: Instant,
}

impl Board {
    /// Builds the machine and loads what it boots, or brings a saved one back around its memory. The vCPUs wait until [`Board::resume`].
    pub(super) fn build(
        parts: &mut Parts,
        tell: TellGuest,
        first_run: &Arc<OnceLock<Instant>>,
        mut saved: Option<Sections>,
    ) -> Result<Self, BuildError> {
        let ram = parts.memory.ram.clone();
        let (vm, vcpus) = match &mut saved {
            None => {
                let (vm, entry) = create_and_load(parts, &ram)?;
                let vcpus = fresh_vcpus(parts, &vm, entry)?;
                (Arc::new(vm), vcpus)
            }
            Some(saved) => {
                let vm = parts.host.create_vm(&ram)?;
                let vcpus = restored_vcpus(parts, &vm, saved)?;
                (Arc::new(vm), vcpus)
            }
        };
        let gate = Arc::new(Gate::new(usize::try_from(parts.config.vcpus).unwrap_or(usize::MAX)));
        let asked = Arc::new(AtomicBool::new(false));
        let ask = asker(&gate, &asked, &tell);

        let (ports, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
        // Each device is fresh, or as it was saved.
        let from = &mut saved;
        let host = (level_line(&vm, SCI.into()), Arc::clone(&ask));
        let power = made::<AcpiPm>(from, host, |(line, ask)| AcpiPm::new(line, ask))?;
        let host = (edge_line(&vm, COM1_IRQ)?, Arc::clone(&parts.console));
        let serial = made::<SerialPort>(from, host, |(line, console)| SerialPort::new(line, console))?;
        let rtc = made::<Rtc>(from, host_clock(), Rtc::new)?;
        let bridge = match from {
            None => HostBridge::new(),
            Some(saved) => saved.restore(0, ())?,
        };
        let mut pci = PciBus::with_bridge(bridge, &mmio, MMIO32_BASE..MMIO32_END, None);
        let msi = Arc::new(KvmMsi::new(Arc::clone(&vm)));
        let mut wires =
            Wires { ram: &ram, router: Arc::clone(&msi) as _, doorbells: msi, saved: from.as_mut() };
        slots::plug(&mut pci, &parts.config, &parts.disks, &parts.taps, &mut wires)?;
        let pci = Arc::new(Mutex::new(pci));
        let config_ports = made::<ConfigPorts>(from, Arc::clone(&pci), ConfigPorts::new)?;
        let host = (Arc::clone(&config_ports) as SharedDevice, Arc::clone(&ask));
        let pci_ports = made::<PciConfigPorts>(from, host, |(pci, ask)| PciConfigPorts::new(pci, ask))?;
        if let Some(saved) = saved {
            saved.finish()?;
        }
        ports.insert(PM1_EVENT.into(), PM_PORTS.into(), Arc::clone(&power) as _)?;
        ports.insert(COM1.into(), COM1_PORTS.into(), Arc::clone(&serial) as _)?;
        ports.insert(INDEX_PORT.into(), 2, Arc::clone(&rtc) as _)?;
        ports.insert(KEYBOARD_COMMAND.into(), 1, Arc::new(Mutex::new(KeyboardReset::new(ask))))?;
        ports.insert(PCI_CONFIG.into(), PCI_CONFIG_PORTS.into(), Arc::clone(&pci_ports) as _)?;
        mmio.insert(ECAM_BASE, ECAM_SIZE, Arc::new(Mutex::new(Ecam::new(Arc::clone(&pci)))))?;

        let around = Arc::new(Surroundings {
            ports,
            mmio,
            gate: Arc::clone(&gate),
            asked,
            tell,
            first_run: Arc::clone(first_run),
        });
        let mut board = Self {
            gate,
            threads: vec![],
            power: Arc::clone(&power),
            pci,
            serial: Arc::clone(&serial),
            console: Arc::clone(&parts.console),
            devices: vec![power, serial, rtc, config_ports, pci_ports],
            abilities: parts.host.abilities().clone(),
            vm,
            ram,
            born: Instant::now(),
        };
        for (id, vcpu) in (0..).zip(vcpus) {
            let affinity = parts.config.cpu.affinity_of(id);
            let started = vcpu::start(id, vcpu, Arc::clone(&around), affinity);
            board
                .threads
                .push(started.map_err(|source| KvmError::System { what: "start a vCPU's thread", source })?);
        }
        Ok(board)
    }

    /// Lets the vCPUs run.
    pub(super) fn resume(&self) {
        self.pci().resume();
        self.console.attach(&self.serial);
        self.gate.open();
    }

    /// Makes everything quiet: vCPUs stand where no exit is half done, workers have ended their requests, nothing is typed; false when one does not come out in time (the others go on then).
    pub(super) fn pause(&self) -> bool {
        self.gate.hold();
        self.kick();
        let stopped = self.gate.wait_empty(STOP_WITHIN);
        if stopped {
            self.console.detach();
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

    pub(super) fn pci(&self) -> MutexGuard<'_, PciBus> {
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kick(&self) {
        self.threads.iter().for_each(crate::sys::kick);
    }

    /// Ends the board. False when a vCPU does not come out; its thread then keeps the virtual machine alive until the process ends.
    pub(super) fn end(mut self) -> bool {
        self.shut()
    }

    /// Stops the vCPUs, and leaves everything else to the end of the process: a worker may wait for memory that never comes.
    pub(super) fn abandon(self) -> bool {
        self.gate.shut();
        self.kick();
        let stopped = self.gate.wait_empty(STOP_WITHIN);
        std::mem::forget(self);
        stopped
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

fn fresh_vcpus(parts: &Parts, vm: &VmFd, entry: Entry) -> Result<Vec<VcpuFd>, KvmError> {
    let processor = parts.host.processor();
    let one = |index: u32| {
        let vcpu = vm.create_vcpu(processor.apic_id(index).into()).map_err(doing("create a vCPU"))?;
        set_up(&vcpu, index, processor, (index == 0).then_some(entry))?;
        Ok(vcpu)
    };
    (0..parts.config.vcpus).map(one).collect()
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
