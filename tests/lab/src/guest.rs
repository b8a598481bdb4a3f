//! A guest for demo and tests: Debian's unmodified cloud kernel with an initramfs of its own drivers, Debian's static busybox and
//! the script `guest-init`. It prints what it found, serves HTTP on port 80, obeys its power button, and has a shell on its
//! serial console.
//!
//! Words on its command line: `guest.address=dhcp` or `guest.address=192.0.2.50/24`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::artefacts;

/// The line that the guest prints when it is up, followed by its kernel's release.
pub const READY: &str = "guest: ready";

/// The guest's init.
const INIT: &str = include_str!("guest-init");

/// The guest's kernel.
pub fn kernel() -> Result<PathBuf> {
    artefacts::image("guest/vmlinuz")
}

/// Writes the guest's initramfs to `to`, from what `keelson-image fetch` laid out.
pub fn initramfs(to: &Path) -> Result<()> {
    let guest = artefacts::image("guest/vmlinuz")?;
    let guest = guest.parent().context("no directory of the guest")?;
    let mut archive = Archive::default();
    for dir in ["bin", "dev", "proc", "sys", "etc", "tmp", "www", "modules"] {
        archive.add(dir, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, INIT.as_bytes());
    archive.add("bin/busybox", 0o100_755, &read(&guest.join("busybox"))?);
    let order =
        std::fs::read_to_string(guest.join("modules.load")).context("modules.load of the guest kernel")?;
    archive.add("modules/load", 0o100_644, order.as_bytes());
    for module in order.lines() {
        archive.add(&format!("modules/{module}"), 0o100_644, &read(&guest.join("modules").join(module))?);
    }
    std::fs::write(to, archive.finish()).with_context(|| format!("{} could not be written", to.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} could not be read", path.display()))
}

/// A cpio archive in the `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst in Linux).
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    pub(crate) fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let fields =
            [self.inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
