//! A vCPU's thread: enters the guest, and answers its exits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::gate::{Gate, Passage};
use super::{GuestEvent, TellGuest};
use crate::devices::bus::Bus;
use crate::sys::Kickable;

/// What the vCPUs of a board share.
pub(super) struct Surroundings {
    pub(super) ports: Arc<Bus>,
    pub(super) mmio: Arc<Bus>,
    pub(super) gate: Arc<Gate>,
    /// A device has asked for something after which no instruction may run.
    pub(super) asked: Arc<AtomicBool>,
    pub(super) tell: TellGuest,
    /// The moment before the first KVM_RUN.
    pub(super) first_run: Arc<OnceLock<Instant>>,
}

/// Most of it is never touched; the kernel gives a page when one is.
const STACK: usize = 256 << 10;

/// Starts the thread, which waits at the gate.
pub(super) fn start(
    index: u32,
    vcpu: VcpuFd,
    around: Arc<Surroundings>,
    affinity: Option<&[u32]>,
) -> std::io::Result<JoinHandle<()>> {
    let pinned = affinity.map(cpu_set).transpose()?;
    let thread = std::thread::Builder::new().name(format!("vcpu{index}")).stack_size(STACK);
    thread.spawn(move || {
        // That the host has these processors was seen at the start; one that went away since leaves the vCPU where it is.
        if let Some(Err(e)) = pinned.map(|set| sched_setaffinity(Pid::from_raw(0), &set)) {
            log::warn!("vCPU {index} runs on any host processor, not on the ones that it is pinned to: {e}");
        }
        let mut vcpu = Kickable::bind(vcpu);
        run(index, &mut vcpu, &around);
        // The vCPU's descriptor must be closed before the board counts this vCPU as gone.
        drop(vcpu);
        around.gate.leave();
    })
}

/// These host processors, for the scheduler.
pub(crate) fn cpu_set(processors: &[u32]) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(usize::try_from(*processor).unwrap_or(usize::MAX))?;
    }
    Ok(set)
}

/// Why a vCPU came out of the guest and does not go straight back.
enum Out {
    Kicked,
    Ended,
}

fn run(index: u32, vcpu: &mut Kickable, around: &Surroundings) {
    let (mut errands, mut held) = (0, false);
    loop {
        match around.gate.pass(&mut errands) {
            Passage::Never => return,
            Passage::Errand(errand) => {
                errand(index, vcpu.vcpu());
                held = true;
                continue;
            }
            Passage::Through => {}
            Passage::AfterHold => held = true,
        }
        if std::mem::take(&mut held) {
            // Tells the guest that it was stopped, so that its watchdogs do not bark; a guest without kvmclock has no such word.
            let _ = vcpu.vcpu().kvmclock_ctrl();
        }
        around.first_run.get_or_init(Instant::now);
        match enter(vcpu, around) {
            Out::Kicked => vcpu.clear(),
            Out::Ended => return,
        }
    }
}

/// Runs the guest until the vCPU is kicked or the machine ends. An exit that was answered is completed by the next KVM_RUN, also
/// by one that comes straight back because of a kick: so at the gate no exit is ever half done.
fn enter(vcpu: &mut Kickable, around: &Surroundings) -> Out {
    loop {
        match vcpu.vcpu().run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => port_exit(vcpu, &around.ports),
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xff);
                around.mmio.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                around.mmio.write(address, data);
            }
            Ok(VcpuExit::Shutdown) => return ended(around, GuestEvent::TripleFault),
            // Nothing to do but to go on.
            Ok(
                VcpuExit::Intr
                | VcpuExit::IrqWindowOpen
                | VcpuExit::IoapicEoi(_)
                | VcpuExit::SetTpr
                | VcpuExit::TprAccess,
            ) => {}
            Ok(VcpuExit::InternalError) => {
                return ended(around, GuestEvent::Fault(where_(vcpu, "KVM cannot go on (internal error)")));
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let what = format!(
                    "the processor refused to enter the guest (reason {reason:#x} on processor {cpu})"
                );
                return ended(around, GuestEvent::Fault(where_(vcpu, &what)));
            }
            Ok(other) => {
                let what = format!("KVM came back with an exit that no machine of ours causes: {other:?}");
                return ended(around, GuestEvent::Fault(where_(vcpu, &what)));
            }
            Err(e) if e.errno() == libc::EINTR => return Out::Kicked,
            // A vCPU that waits for its start-up message comes back so.
            Err(e) if e.errno() == libc::EAGAIN => {}
            Err(e) => return ended(around, GuestEvent::Fault(where_(vcpu, &format!("KVM_RUN failed: {e}")))),
        }
        if around.asked.load(Ordering::Acquire) {
            return Out::Kicked;
        }
    }
}

fn ended(around: &Surroundings, event: GuestEvent) -> Out {
    around.gate.shut();
    (around.tell)(event);
    Out::Ended
}

/// The sentence with the place at which the guest was.
fn where_(vcpu: &mut Kickable, what: &str) -> String {
    match vcpu.vcpu().get_regs() {
        Ok(regs) => format!("{what}; the guest was at rip {:#x}, rsp {:#x}", regs.rip, regs.rsp),
        Err(_) => what.to_owned(),
    }
}

/// String instructions repeat an access: each is made in order.
fn port_exit(vcpu: &mut Kickable, ports: &Bus) {
    let access = crate::sys::port_access(vcpu.vcpu());
    for part in access.data.chunks_mut(access.size.max(1)) {
        if access.out {
            ports.write(access.port.into(), part);
        } else {
            part.fill(0xff);
            ports.read(access.port.into(), part);
        }
    }
}
