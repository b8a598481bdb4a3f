//! The benches: what is measured and in which order. A bench prints one line `name value unit` a figure on standard output, and what
//! it is doing on standard error; docs/bench.md says what each figure means.

mod figures;
mod image;
mod monitor;
mod server;

use anyhow::Result;

use crate::net::LabNet;
use figures::{Figures, median};

/// How often a server is booted, and a bare kernel.
const BOOTS: u32 = 3;
/// How often a monitor is started.
const STARTS: usize = 9;

/// `bench boot`: from the kernel to an API that answers, the image's size, the memory of a host and of a monitor.
pub fn boot() -> Result<()> {
    let mut figures = Figures::default();
    image::sizes(&mut figures)?;
    monitors(&mut figures)?;
    servers(&mut figures)?;
    figures.show_aims();
    Ok(())
}

fn monitors(figures: &mut Figures) -> Result<()> {
    let scratch = crate::process::scratch("bench")?;
    let payload = scratch.path().join("payload.elf");
    std::fs::write(&payload, crate::payload::build()?)?;
    // The first start of each reads its program from the disk; it is not counted.
    monitor::start(&payload, scratch.path())?;
    let (mut starts, mut first_bytes, mut private) = (Vec::new(), Vec::new(), Vec::new());
    for n in 1..=STARTS {
        let one = monitor::start(&payload, scratch.path())?;
        eprintln!("monitor {n}/{STARTS}: {one:?}");
        starts.push(one.start_ms);
        first_bytes.push(one.first_byte_ms);
        private.push(one.private_mib);
    }
    figures.add("vmm.start", median(&starts)?, "ms");
    figures.add("vmm.first_byte", median(&first_bytes)?, "ms");
    figures.add("vmm.private", median(&private)?, "MiB");
    if let Some(qemu_ms) = monitor::best_qemu(&payload, STARTS)? {
        figures.add("peer.qemu.first_byte", qemu_ms, "ms");
        figures.add("ratio.vmm.start", qemu_ms / median(&first_bytes)?, "x");
    }
    Ok(())
}

fn servers(figures: &mut Figures) -> Result<()> {
    eprintln!("servers run by {}", crate::server::accelerator(true).1);
    let net = LabNet::enter()?;
    let bench = server::Bench::new(&net)?;
    let (mut bare, mut booted) = (Vec::new(), Vec::new());
    // In turns, so that a busy moment of this machine falls on both.
    for n in 1..=BOOTS {
        let one = bench.bare()?;
        eprintln!("bare kernel {n}/{BOOTS}: {one:?}");
        bare.push(one);
        let one = bench.boot()?;
        eprintln!("server {n}/{BOOTS}: {one:?}");
        booted.push(one);
    }
    let of = |what: fn(&server::Booted) -> f64| median(&booted.iter().map(what).collect::<Vec<_>>());
    let of_bare = |what: fn(&server::Bare) -> f64| median(&bare.iter().map(what).collect::<Vec<_>>());
    let (ours, bare_ms) = (of(|b| b.kernel_to_init_ms)?, of_bare(|b| b.kernel_to_init_ms)?);
    figures.add("boot.kernel_to_init", ours, "ms");
    figures.add("boot.bare_kernel_to_init", bare_ms, "ms");
    figures.add("ratio.boot.kernel_to_init", bare_ms / ours, "x");
    figures.add("boot.init_to_api", of(|b| b.init_to_api_ms)?, "ms");
    figures.add("host.memory", of(|b| b.memory_mib)?, "MiB");
    figures.add("host.reserved_memory", of(|b| b.reserved_mib)?, "MiB");
    figures.add("host.bare_memory", of_bare(|b| b.memory_mib)?, "MiB");
    Ok(())
}
