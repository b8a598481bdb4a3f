//! The freestanding guest of the VMM's own tests (`vmm/tests/payload`): small enough to run natively in every kind of KVM. It polls
//! and needs no kernel.

use std::process::Command;

use anyhow::{Result, bail};

use crate::artefacts;
use crate::process::scratch;

/// The command line that makes it answer each byte on its serial port with the next one, and obey its power button.
pub const SERVE: &str = "serve";
/// What it prints first then.
pub const HELLO: &str = "serving";

const FLAGS: &str = "-O2 -m64 -ffreestanding -fno-pic -no-pie -mno-red-zone -mgeneral-regs-only -fno-stack-protector \
                     -fno-asynchronous-unwind-tables -fcf-protection=none -nostdlib -static -Wall -Werror -Wl,--build-id=none";

/// Builds it: a PVH ELF.
pub fn build() -> Result<Vec<u8>> {
    let sources = artefacts::top().join("vmm/tests/payload");
    let directory = scratch("payload")?;
    let elf = directory.path().join("payload.elf");
    let mut gcc = Command::new("gcc");
    gcc.args(FLAGS.split_whitespace()).arg("-T").arg(sources.join("link.ld")).arg("-o").arg(&elf);
    let output = gcc.args([sources.join("entry.S"), sources.join("payload.c")]).output()?;
    if !output.status.success() {
        bail!("the payload does not build: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(std::fs::read(elf)?)
}
