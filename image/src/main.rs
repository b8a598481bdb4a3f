//! `keelson-image`: builds the image, keeps its lock, fetches parts for the lab.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use keelson_image::archive::Archive;
use keelson_image::artefacts::{self, Inputs};
use keelson_image::drivers::{DRIVERS, Rule};
use keelson_image::licences::Licences;
use keelson_image::lock::{self, Lock};
use keelson_image::parts::Cache;
use keelson_image::wants::{PARTS, Role, Wants};
use keelson_image::{crates, fetch, initramfs, tools};

/// Makes Keelson's image from Debian's signed kernel and our own static programs.
#[derive(Parser)]
#[command(version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build keelson.efi (UKI), keelson.img (disk), vmlinuz, initramfs.cpio, cmdline, keelson.manifest.json, sizes.txt.
    Build {
        /// Directory with the static programs init, netd, hostd, dcui and keelson-vmm.
        #[arg(long, value_name = "DIR")]
        bin_dir: PathBuf,
        /// Where the finished files go.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The source tree, whose Cargo.lock says what the programs are made of.
        #[arg(long, value_name = "DIR", default_value = ".")]
        tree: PathBuf,
        /// Words to add to the kernel command line, for tests.
        #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
        cmdline: String,
        /// A file to add to the initramfs, for tests (repeatable).
        #[arg(long, value_name = "PATH=FILE", value_parser = added)]
        add: Vec<(String, PathBuf)>,
        #[command(flatten)]
        store: Store,
    },
    /// Update the lock file to what is newest in the archive, and print what changed.
    Lock {
        #[command(flatten)]
        store: Store,
    },
    /// Fetch parts for the lab.
    Fetch {
        /// Which.
        what: What,
        /// Where they go.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        #[command(flatten)]
        store: Store,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// UEFI firmware for emulated servers: OVMF_CODE_4M.fd, OVMF_VARS_4M.fd.
    Ovmf,
    /// A stock kernel for guests and a shell: vmlinuz, release, modules/, modules.load, busybox.
    #[value(alias = "guest-kernel")]
    Guest,
    /// All that a build needs, into the cache only.
    Parts,
}

#[derive(Args)]
struct Store {
    /// Cache of downloads [default: $XDG_CACHE_HOME/keelson, or ~/.cache/keelson].
    #[arg(long, value_name = "DIR", env = "KEELSON_CACHE")]
    cache: Option<PathBuf>,
    /// The lock file.
    #[arg(long, value_name = "FILE", default_value = "image/parts.lock")]
    lock: PathBuf,
}

impl Store {
    fn cache(&self) -> Result<Cache> {
        let from = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let dir = match &self.cache {
            Some(dir) => dir.clone(),
            None => from("XDG_CACHE_HOME")
                .or_else(|| from("HOME").map(|home| home.join(".cache")))
                .map(|base| base.join("keelson"))
                .context("neither XDG_CACHE_HOME nor HOME is set; name a cache with --cache")?,
        };
        Ok(Cache::open(&dir)?)
    }
}

fn added(text: &str) -> Result<(String, PathBuf), String> {
    let (path, file) = text.split_once('=').ok_or("it must be PATH=FILE")?;
    let path = path.trim_start_matches('/');
    if path.is_empty() || path.split('/').any(|piece| matches!(piece, "" | "." | "..")) {
        return Err(format!("{path:?} is no path inside the image"));
    }
    Ok((path.to_owned(), file.into()))
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keelson-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let wants = Wants::parse(PARTS)?;
    match command {
        Command::Build { bin_dir, out, tree, cmdline, add, store } => {
            tools::require(&[tools::FETCH, tools::BUILD])?;
            build(wants, Build { bin_dir, out, tree, cmdline, add }, &store)
        }
        Command::Lock { store } => {
            tools::require(&[tools::FETCH])?;
            update_lock(&wants, &store)
        }
        Command::Fetch { what, out, store } => {
            tools::require(&[tools::FETCH])?;
            fetch_one(&wants, what, &out, &store)
        }
    }
}

struct Build {
    bin_dir: PathBuf,
    out: PathBuf,
    tree: PathBuf,
    cmdline: String,
    add: Vec<(String, PathBuf)>,
}

fn build(wants: Wants, build: Build, store: &Store) -> Result<()> {
    let start = Instant::now();
    let lock = Lock::read(&store.lock)?;
    let programs = artefacts::programs(&build.bin_dir)?;
    let names: Vec<&str> = initramfs::PROGRAMS.iter().map(|(name, _)| *name).collect();
    let crates = crates::linked(&build.tree, &names)?;
    let mut licences = Licences::common()?;
    licences
        .crates(crates.iter().map(|c| (c.entry.name.as_str(), c.entry.version.as_str(), c.dir.as_path())))?;
    let mut linked = vec![crates::c_library(), crates::rust_libraries()];
    linked.extend(crates.into_iter().map(|linked| linked.entry));
    let mut added = BTreeMap::new();
    for (path, file) in build.add {
        let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        added.insert(path, bytes);
    }
    let cache = store.cache()?;
    let parts = cache.obtain(&wants, &lock, artefacts::ROLES)?;
    let kept = Some(cache.kept());
    let rule = Rule::parse(DRIVERS)?;
    let inputs =
        Inputs { wants, rule, parts, programs, linked, licences, more_words: build.cmdline, added, kept };
    let assembly = artefacts::assemble(&inputs)?;
    let files = assembly.write(&build.out)?;
    print!("{}", assembly.sizes.lines());
    for file in files {
        println!("{}  {}", file.sha256, build.out.join(&file.name).display());
    }
    eprintln!("kernel {}, built in {:.1} s", assembly.manifest.kernel_release, start.elapsed().as_secs_f64());
    Ok(())
}

fn update_lock(wants: &Wants, store: &Store) -> Result<()> {
    let old = if store.lock.exists() { Lock::read(&store.lock)?.parts } else { Vec::new() };
    let archive = Archive::update(&store.cache()?.apt_home(), wants)?;
    let lock = Lock::newest(wants, &archive)?;
    let changes = lock::changes(&old, &lock.parts);
    if changes.is_empty() {
        println!("{} is up to date", store.lock.display());
        return Ok(());
    }
    lock.write(&store.lock)?;
    println!("{} changed:", store.lock.display());
    for line in changes {
        println!("  {line}");
    }
    Ok(())
}

fn fetch_one(wants: &Wants, what: What, out: &Path, store: &Store) -> Result<()> {
    let lock = Lock::read(&store.lock)?;
    let cache = store.cache()?;
    let one = |role| -> Result<_> {
        match cache.obtain(wants, &lock, &[role])?.into_iter().next() {
            Some(part) => Ok(part),
            None => bail!("parts.toml names nothing for {role:?}"),
        }
    };
    let written = match what {
        What::Ovmf => fetch::ovmf(&one(Role::Ovmf)?, out)?,
        What::Guest => {
            let mut written = fetch::guest_kernel(&one(Role::GuestKernel)?, out)?;
            written.push(fetch::guest_tools(&one(Role::GuestTools)?, out)?);
            written
        }
        What::Parts => {
            cache.obtain(wants, &lock, artefacts::ROLES)?.into_iter().map(|part| part.deb).collect()
        }
    };
    for path in written {
        println!("{}", path.display());
    }
    Ok(())
}
