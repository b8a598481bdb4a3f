//! One build: verified parts and our programs in, the finished files out.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::deb::DebError;
use crate::digest;
use crate::disk::{self, DiskError};
use crate::drivers::{DriverError, Rule};
use crate::initramfs::{self, Contents, FSCK, LICENCES, PROGRAMS};
use crate::licences::Licences;
use crate::manifest::{self, Artefact, Entry, Kind, Manifest, Source};
use crate::parts::Part;
use crate::sizes::{self, Sizes};
use crate::taken::{self, Taken};
use crate::tree::Tree;
use crate::uki::{self, UkiError};
use crate::wants::{Role, Wants};

/// Roles whose parts an image is made of.
pub const ROLES: &[Role] = &[Role::Kernel, Role::Stub, Role::Fsck, Role::Microcode, Role::Firmware];

/// The command line in every image.
///
/// Both consoles are open for kernel messages; the last named is /dev/console. `quiet` leaves them to the console program, but
/// for errors. A host that has panicked restarts after half a minute, long enough to read why.
pub const COMMAND_LINE: &str = "console=ttyS0,115200n8 console=tty0 quiet panic=30";

/// The example of the file that an owner may edit on the ESP.
pub const EXAMPLE: &str = include_str!("../keelson.conf");

/// Why a build failed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Programs are missing.
    #[error("{} has no {}; build them with `cargo build --release` first", .dir.display(), .names.join(", "))]
    Programs {
        /// Where they were looked for.
        dir: PathBuf,
        /// Which are missing.
        names: Vec<String>,
    },
    /// A program needs shared libraries, which the image does not have.
    #[error("{0} is not a static program for x86-64; the image has no shared libraries")]
    NotStatic(String),
    /// A file cannot be read or written.
    #[error("cannot use {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No part of that role is among the parts.
    #[error("there is no part for {0:?}")]
    NoPart(Role),
    /// The result is larger than an image may be.
    #[error("the UKI has {bytes} bytes, {} are allowed:\n{lines}", sizes::LIMIT)]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// Sizes by part.
        lines: String,
    },
    /// A package could not be read.
    #[error(transparent)]
    Deb(#[from] DebError),
    /// Drivers could not be selected.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The UKI could not be joined.
    #[error(transparent)]
    Uki(#[from] UkiError),
    /// The disk image could not be written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The manifest could not be spelled.
    #[error("the manifest cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// All that a build depends on.
pub struct Inputs {
    /// What the parts are for.
    pub wants: Wants,
    /// Which drivers are taken.
    pub rule: Rule,
    /// The verified package files.
    pub parts: Vec<Part>,
    /// Our programs by name.
    pub programs: BTreeMap<&'static str, Vec<u8>>,
    /// What is linked into them.
    pub linked: Vec<Entry>,
    /// Licence texts besides those of the parts.
    pub licences: Licences,
    /// Words behind the usual command line, for tests.
    pub more_words: String,
    /// Further files by path, for tests.
    pub added: BTreeMap<String, Vec<u8>>,
    /// Where to keep what unpacking and compressing gave, so that the next build of the same parts need not repeat it.
    pub kept: Option<PathBuf>,
}

/// The finished files, in memory.
pub struct Assembly {
    /// The kernel as Debian signed it.
    pub kernel: Vec<u8>,
    /// The initramfs with microcode in front.
    pub initramfs: Vec<u8>,
    /// The UKI.
    pub uki: Vec<u8>,
    /// What it is made of.
    pub manifest: Manifest,
    /// What takes how much room.
    pub sizes: Sizes,
}

/// Reads our programs from `dir`; all must be there, and static.
pub fn programs(dir: &Path) -> Result<BTreeMap<&'static str, Vec<u8>>, BuildError> {
    let missing: Vec<String> = PROGRAMS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !dir.join(name).is_file())
        .map(str::to_owned)
        .collect();
    if !missing.is_empty() {
        return Err(BuildError::Programs { dir: dir.to_owned(), names: missing });
    }
    let read = |name: &'static str| {
        let path = dir.join(name);
        let bytes = fs::read(&path).map_err(|source| BuildError::Io { path, source })?;
        if is_static(&bytes) { Ok((name, bytes)) } else { Err(BuildError::NotStatic(name.to_owned())) }
    };
    PROGRAMS.iter().map(|(name, _)| read(name)).collect()
}

/// A static program asks for no interpreter; a static PIE relocates itself.
fn is_static(program: &[u8]) -> bool {
    use object::read::elf::{FileHeader, ProgramHeader};
    let Ok(header) = object::elf::FileHeader64::<object::Endianness>::parse(program) else { return false };
    let Ok(endian) = header.endian() else { return false };
    let Ok(segments) = header.program_headers(endian, program) else { return false };
    header.e_machine(endian) == object::elf::EM_X86_64
        && segments.iter().all(|segment| segment.p_type(endian) != object::elf::PT_INTERP)
}

/// Puts everything together. The same inputs give the same bytes.
pub fn assemble(inputs: &Inputs) -> Result<Assembly, BuildError> {
    let taken = taken::of(inputs)?;
    let command_line = [COMMAND_LINE, inputs.more_words.trim()].join(" ").trim().to_owned();
    let manifest = describe(inputs, &taken, &command_line);
    let text = manifest.to_json()?;
    let tree = initramfs::tree(&Contents {
        programs: &inputs.programs,
        fsck: &taken.fsck,
        drivers: &taken.drivers,
        firmware: &taken.firmware,
        licences: &taken.licences,
        manifest: &text,
        added: &inputs.added,
    });
    let initramfs = initramfs::pack(&tree, &taken.intel, &taken.amd);
    let uki = uki::join(
        &taken.stub,
        &[
            (".cmdline", command_line.as_bytes()),
            (".uname", taken.drivers.release.as_bytes()),
            (".initrd", &initramfs),
            (".linux", &taken.kernel),
        ],
    )?;
    let sizes = measure(&taken, &tree, &uki);
    if uki.len() as u64 > sizes::LIMIT {
        return Err(BuildError::TooLarge { bytes: uki.len() as u64, lines: sizes.lines() });
    }
    Ok(Assembly { kernel: taken.kernel, initramfs, uki, manifest, sizes })
}

fn describe(inputs: &Inputs, taken: &Taken, command_line: &str) -> Manifest {
    let version = env!("CARGO_PKG_VERSION");
    let ours = |name: &str, place: &str| Source {
        name: name.into(),
        version: version.into(),
        place: place.into(),
        built_using: String::new(),
    };
    let mut parts: Vec<Entry> = inputs
        .parts
        .iter()
        .filter_map(|part| {
            Some((inputs.wants.parts.iter().find(|want| want.handle() == part.locked.handle)?, part))
        })
        .map(|(want, part)| manifest::debian(want, part))
        .collect();
    for (name, bytes) in &inputs.programs {
        parts.push(Entry {
            kind: Kind::Program,
            name: (*name).into(),
            version: version.into(),
            licence: "Apache-2.0".into(),
            takes: "program of this product".into(),
            sha256: digest::of_bytes(bytes),
            source: ours("keelson", "this product's source tree"),
        });
    }
    parts.extend(inputs.linked.iter().cloned());
    for (path, bytes) in &inputs.added {
        parts.push(Entry {
            kind: Kind::Added,
            name: path.clone(),
            version: String::new(),
            licence: String::new(),
            takes: "file added for a test; not in an image that ships".into(),
            sha256: digest::of_bytes(bytes),
            source: ours(path, "the command line of this build"),
        });
    }
    Manifest {
        schema: manifest::SCHEMA,
        product: "keelson".into(),
        version: version.into(),
        kernel_release: taken.drivers.release.clone(),
        command_line: command_line.into(),
        parts,
        firmware_left_out: taken.firmware.left_out.clone(),
        artefacts: Vec::new(),
    }
}

fn measure(taken: &Taken, tree: &Tree, uki: &[u8]) -> Sizes {
    let mut sizes = Sizes::new(uki.len() as u64);
    sizes.add("kernel", taken.kernel.len() as u64);
    sizes.add("stub", taken.stub.len() as u64);
    sizes.add("microcode", (taken.intel.len() + taken.amd.len()) as u64);
    sizes.add("drivers", tree.bytes_below("lib/modules/"));
    sizes.add("firmware", tree.bytes_below("lib/firmware/"));
    sizes.add("licences", tree.bytes_below(LICENCES));
    sizes.add("manifest", tree.bytes_below(initramfs::MANIFEST));
    sizes.add("e2fsck", tree.bytes_below(FSCK));
    for (name, path) in PROGRAMS {
        sizes.add(*name, tree.bytes_below(path));
    }
    sizes
}

impl Assembly {
    /// Writes all artefacts to `out`, each whole or not at all, and returns what they are.
    pub fn write(&self, out: &Path) -> Result<Vec<Artefact>, BuildError> {
        fs::create_dir_all(out).map_err(|source| BuildError::Io { path: out.to_owned(), source })?;
        let mut artefacts = Vec::new();
        for (name, bytes) in
            [("keelson.efi", &self.uki), ("initramfs.cpio", &self.initramfs), ("vmlinuz", &self.kernel)]
        {
            artefacts.push(put(out, name, |path| fs::write(path, bytes).map_err(|source| at(path, source)))?);
        }
        let esp = BTreeMap::from([
            ("EFI/BOOT/BOOTX64.EFI".to_owned(), self.uki.clone()),
            ("keelson.conf".to_owned(), EXAMPLE.as_bytes().to_vec()),
        ]);
        artefacts.push(put(out, "keelson.img", |path| Ok(disk::write(path, &esp)?))?);
        let manifest = Manifest { artefacts: artefacts.clone(), ..self.manifest.clone() }.to_json()?;
        let command_line = format!("{}\n", self.manifest.command_line);
        for (name, text) in [
            ("keelson.manifest.json", manifest),
            ("sizes.txt", self.sizes.lines()),
            ("cmdline", command_line),
        ] {
            put(out, name, |path| fs::write(path, &text).map_err(|source| at(path, source)))?;
        }
        Ok(artefacts)
    }
}

fn at(path: &Path, source: io::Error) -> BuildError {
    BuildError::Io { path: path.to_owned(), source }
}

/// Writes under another name first: a reader never sees half a file.
fn put(
    out: &Path,
    name: &str,
    write: impl FnOnce(&Path) -> Result<(), BuildError>,
) -> Result<Artefact, BuildError> {
    let (unfinished, path) = (out.join(format!(".{name}.part")), out.join(name));
    write(&unfinished)?;
    fs::rename(&unfinished, &path).map_err(|source| at(&path, source))?;
    let size = fs::metadata(&path).map_err(|source| at(&path, source))?.len();
    let sha256 = digest::of_file(&path).map_err(|source| at(&path, source))?;
    Ok(Artefact { name: name.to_owned(), size, sha256 })
}
