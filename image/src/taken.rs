//! What is taken from the packages: unpacked, selected, compressed. It is the slow half of a build, so it can be kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::artefacts::{BuildError, Inputs};
use crate::deb::{DebError, Files};
use crate::digest;
use crate::drivers::{self, Selection};
use crate::firmware::{self, Firmware};
use crate::microcode;
use crate::parts::Part;
use crate::wants::Role;

/// Where systemd's stub lies in its package.
const STUB: &str = "lib/systemd/boot/efi/linuxx64.efi.stub";
/// Length of a SHA-256 as text.
const SUM: usize = 64;

/// What is taken from the packages.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The kernel as Debian signed it.
    #[serde(with = "serde_bytes")]
    pub kernel: Vec<u8>,
    /// systemd's EFI stub.
    #[serde(with = "serde_bytes")]
    pub stub: Vec<u8>,
    /// e2fsck.
    #[serde(with = "serde_bytes")]
    pub fsck: Vec<u8>,
    /// The drivers.
    pub drivers: Selection,
    /// Their firmware.
    pub firmware: Firmware,
    /// Updates of Intel processors.
    #[serde(with = "serde_bytes")]
    pub intel: Vec<u8>,
    /// Updates of AMD processors.
    #[serde(with = "serde_bytes")]
    pub amd: Vec<u8>,
    /// Licence texts by name, compressed.
    pub licences: BTreeMap<String, Vec<u8>>,
}

/// Takes what `inputs` asks for, or what an earlier build kept of the same.
pub fn of(inputs: &Inputs) -> Result<Taken, BuildError> {
    let Some(dir) = &inputs.kept else { return take(inputs) };
    let path = dir.join(key(inputs)?);
    if let Some(taken) = recall(&path) {
        return Ok(taken);
    }
    let taken = take(inputs)?;
    // Not being able to keep it costs the next build time and this one nothing.
    if let Err(error) = keep(dir, &path, &taken) {
        eprintln!("cannot keep what was unpacked in {}: {error}", dir.display());
    }
    Ok(taken)
}

/// A name that changes with everything that the result depends on, this program included.
fn key(inputs: &Inputs) -> Result<String, BuildError> {
    let program = PathBuf::from("/proc/self/exe");
    let mut all = digest::of_file(&program).map_err(|source| BuildError::Io { path: program, source })?;
    for part in &inputs.parts {
        all.push_str(&part.locked.sha256);
    }
    all.push_str(&serde_json::to_string(&(&inputs.rule, &inputs.licences))?);
    Ok(digest::of_bytes(all.as_bytes()))
}

/// What lies at `path`, when it is whole: the sum of the contents, then the contents.
fn recall(path: &Path) -> Option<Taken> {
    let file = fs::read(path).ok()?;
    let (sum, contents) = file.split_at_checked(SUM)?;
    if digest::of_bytes(contents).as_bytes() != sum {
        return None;
    }
    postcard::from_bytes(contents).ok()
}

/// Keeps `taken` at `path`, and nothing else in `dir`: what is older belongs to other parts or another version of this program.
fn keep(dir: &Path, path: &Path, taken: &Taken) -> io::Result<()> {
    let contents = postcard::to_stdvec(taken).map_err(io::Error::other)?;
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)? {
        // Another build may be quicker to remove it.
        let _ = fs::remove_file(entry?.path());
    }
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(digest::of_bytes(&contents).as_bytes())?;
    file.write_all(&contents)?;
    file.persist(path).map(drop).map_err(|error| error.error)
}

fn take(inputs: &Inputs) -> Result<Taken, BuildError> {
    let one =
        |role| inputs.parts.iter().find(|part| part.locked.role == role).ok_or(BuildError::NoPart(role));
    let (kernel_part, stub_part, fsck_part) = (one(Role::Kernel)?, one(Role::Stub)?, one(Role::Fsck)?);

    // Unpacking the kernel package takes longer than everything else together.
    let (kernel, rest) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| Files::read(&kernel_part.deb, in_kernel));
        let rest: Result<Vec<(&Part, Files)>, DebError> = inputs
            .parts
            .iter()
            .filter(|part| part.locked.role != Role::Kernel)
            .map(|part| {
                Files::read(&part.deb, |path| in_others(part.locked.role, path)).map(|files| (part, files))
            })
            .collect();
        (kernel.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), rest)
    });
    let (kernel, rest) = (kernel?, rest?);
    let need = |part: &Part, path: &str| {
        let same = |(other, _): &&(&Part, Files)| other.locked.handle == part.locked.handle;
        let (_, files) = rest.iter().find(same).ok_or(BuildError::NoPart(part.locked.role))?;
        Ok::<_, BuildError>(files.need(&part.locked.package, path)?.to_vec())
    };
    let of_roles = |roles: &'static [Role]| {
        rest.iter().filter(|(part, _)| roles.contains(&part.locked.role)).map(|(_, files)| files)
    };

    let mut drivers = drivers::select(&kernel, inputs.rule.names())?;
    if let Some(unpacked) = &inputs.rule.unpacked {
        drivers.unpack(&unpacked.modules)?;
    }
    // Microcode packages have firmware for the processors' own devices as well.
    let packages: Vec<&Files> = of_roles(&[Role::Firmware, Role::Microcode]).collect();
    let firmware = firmware_of(inputs, &drivers, &packages)?;

    let mut licences = inputs.licences.clone();
    for (part, files) in rest.iter().map(|(part, files)| (*part, files)).chain([(kernel_part, &kernel)]) {
        licences.debian(&part.locked.source, &part.locked.package, files);
    }
    let licences =
        licences.compressed().map_err(|source| BuildError::Io { path: "licences".into(), source })?;

    let vmlinuz = format!("boot/vmlinuz-{}", drivers.release);
    Ok(Taken {
        kernel: kernel.need(&kernel_part.locked.package, &vmlinuz)?.to_vec(),
        stub: need(stub_part, STUB)?,
        fsck: need(fsck_part, "sbin/e2fsck.static")?,
        intel: of_roles(&[Role::Microcode]).flat_map(microcode::intel).collect(),
        amd: of_roles(&[Role::Microcode]).flat_map(microcode::amd).collect(),
        drivers,
        firmware,
        licences,
    })
}

fn firmware_of(inputs: &Inputs, drivers: &Selection, packages: &[&Files]) -> Result<Firmware, BuildError> {
    let named = drivers.firmware();
    let wanted = |modules: &[&str]| modules.iter().any(|module| !inputs.rule.goes_without_firmware(module));
    let (with, without): (Vec<_>, Vec<_>) = named.iter().partition(|(_, modules)| wanted(modules));
    let mut firmware = firmware::collect(with.iter().map(|(name, _)| **name), packages)
        .map_err(|source| BuildError::Io { path: "firmware".into(), source })?;
    firmware.left_out.extend(without.iter().map(|(name, _)| (**name).to_owned()));
    firmware.left_out.sort_unstable();
    Ok(firmware)
}

fn in_kernel(path: &str) -> bool {
    ["boot/vmlinuz-", "lib/modules/"].iter().any(|start| path.starts_with(start))
        || path.ends_with("/copyright")
}

fn in_others(role: Role, path: &str) -> bool {
    path.starts_with("usr/share/doc/")
        || match role {
            Role::Stub => path == STUB,
            Role::Fsck => path.ends_with("/e2fsck.static"),
            _ => path.starts_with("lib/firmware/"),
        }
}
