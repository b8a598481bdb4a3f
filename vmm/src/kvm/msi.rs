//! Message-signalled interrupts and doorbells on KVM: a routing table, irqfds and ioeventfds.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::lines::{Doorbells, MsiLine, MsiMessage, MsiRouter};

/// The pins of the I/O APIC come first; vectors of devices after them.
const PINS: u32 = 24;
/// What KVM's routing table holds on every kernel that we run on (KVM_MAX_IRQ_ROUTES was 1024 before 4.19 and 4096 after).
const MOST_VECTORS: u32 = 900;

/// The interrupts and doorbells of one VM.
pub struct KvmMsi {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    allocated: u32,
    routes: BTreeMap<u32, MsiMessage>,
}

impl KvmMsi {
    /// No vector is allocated yet; the pins keep the routes that KVM gives them.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, table: Mutex::default() }
    }

    /// Tells KVM the whole table, since it knows no smaller change.
    fn apply(&self, routes: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let entries: Vec<_> = pins().chain(routes.iter().map(|(gsi, message)| msi(*gsi, *message))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.vm.set_gsi_routing(&table).map_err(io::Error::from)
    }
}

fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip: kvm_irq_routing_irqchip { irqchip, pin } },
        ..Default::default()
    };
    let io_apic = (0..PINS).map(move |n| pin(n, KVM_IRQCHIP_IOAPIC, n));
    let master = (0..8).map(move |n| pin(n, KVM_IRQCHIP_PIC_MASTER, n));
    io_apic.chain(master).chain((0..8).map(move |n| pin(n + 8, KVM_IRQCHIP_PIC_SLAVE, n)))
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [low, high] = [message.address, message.address >> 32]
        .map(|half| u32::try_from(half & 0xffff_ffff).unwrap_or_default());
    let msi =
        kvm_irq_routing_msi { address_lo: low, address_hi: high, data: message.data, ..Default::default() };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

impl MsiRouter for KvmMsi {
    fn allocate(&self) -> io::Result<MsiLine> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.allocated >= MOST_VECTORS {
            return Err(io::Error::other("the machine has no interrupt vector left"));
        }
        let gsi = PINS + table.allocated;
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        self.vm.register_irqfd(&event, gsi).map_err(io::Error::from)?;
        table.allocated += 1;
        Ok(MsiLine { gsi, event })
    }

    fn route(&self, gsi: u32, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.routes.get(&gsi).copied() == message {
            return Ok(());
        }
        let mut routes = table.routes.clone();
        match message {
            Some(message) => routes.insert(gsi, message),
            None => routes.remove(&gsi),
        };
        self.apply(&routes)?;
        table.routes = routes;
        Ok(())
    }
}

impl Doorbells for KvmMsi {
    fn assign(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm.register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch).map_err(io::Error::from)
    }

    fn unassign(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(io::Error::from)
    }
}
