//! Single parts for the lab: firmware of emulated servers, and a stock kernel for guests.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::deb::{DebError, Files};
use crate::drivers::{self, DriverError};
use crate::modinfo::{self, ModinfoError};
use crate::parts::Part;

/// Drivers that a test guest needs: disk, network, entropy, the power button. Each one more is time in a nested boot.
pub const GUEST_MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "button", "evdev"];

/// Why a part could not be laid out.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A file cannot be written.
    #[error("cannot write {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The package cannot be read.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// Its drivers cannot be selected.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A driver cannot be unpacked.
    #[error(transparent)]
    Module(#[from] ModinfoError),
}

/// Writes `OVMF_CODE_4M.fd` and `OVMF_VARS_4M.fd` to `out`.
pub fn ovmf(part: &Part, out: &Path) -> Result<Vec<PathBuf>, FetchError> {
    const DIR: &str = "usr/share/OVMF/";
    let files = Files::read(&part.deb, |path| path.starts_with(DIR))?;
    ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"]
        .iter()
        .map(|name| put(&out.join(name), files.need(&part.locked.package, &format!("{DIR}{name}"))?))
        .collect()
}

/// Writes `vmlinuz`, `release` (as `uname -r`), `modules/*.ko`, and `modules.load`: their file names, each after what it needs.
///
/// The modules are unpacked here: in a guest of an emulated server that takes longer than everything else.
pub fn guest_kernel(part: &Part, out: &Path) -> Result<Vec<PathBuf>, FetchError> {
    let files =
        Files::read(&part.deb, |path| path.starts_with("boot/vmlinuz-") || path.starts_with("lib/modules/"))?;
    let selection = drivers::select(&files, GUEST_MODULES.iter().copied())?;
    let vmlinuz = files.need(&part.locked.package, &format!("boot/vmlinuz-{}", selection.release))?;
    let mut written = vec![
        put(&out.join("vmlinuz"), vmlinuz)?,
        put(&out.join("release"), format!("{}\n", selection.release).as_bytes())?,
    ];
    let (mut order, mut listed) = (String::new(), BTreeSet::new());
    for name in selection.modules.keys() {
        for name in selection.needs(name).into_iter().rev().chain([name.as_str()]) {
            let Some(module) = selection.modules.get(name).filter(|_| listed.insert(name.to_owned())) else {
                continue;
            };
            let file = format!("{name}.ko");
            order.push_str(&file);
            order.push('\n');
            written.push(put(&out.join("modules").join(file), &modinfo::unpack(&module.bytes)?)?);
        }
    }
    written.push(put(&out.join("modules.load"), order.as_bytes())?);
    Ok(written)
}

/// Writes `busybox`, a static one, for the initramfs of a guest.
pub fn guest_tools(part: &Part, out: &Path) -> Result<PathBuf, FetchError> {
    const BUSYBOX: &str = "bin/busybox";
    let files = Files::read(&part.deb, |path| path == BUSYBOX)?;
    put(&out.join("busybox"), files.need(&part.locked.package, BUSYBOX)?)
}

fn put(path: &Path, bytes: &[u8]) -> Result<PathBuf, FetchError> {
    let write = || {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(path, bytes)
    };
    write().map_err(|source| FetchError::Io { path: path.to_owned(), source })?;
    Ok(path.to_owned())
}
