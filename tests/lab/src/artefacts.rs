//! Where the built things are: binaries, the image, the firmware, the stock guest kernel.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The top of the source tree.
pub fn top() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn directory(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| top().join(default), PathBuf::from)
}

fn existing(path: PathBuf, how: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is missing: {how}", path.display());
    }
    Ok(path)
}

/// A shipped binary, such as `init` or `keelctl`: from `KEELSON_BIN_DIR`, else the release build.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = directory("KEELSON_BIN_DIR", "target/x86_64-unknown-linux-gnu/release");
    existing(directory.join(name), "build it with `cargo build --release`")
}

/// A part of the image, such as `keelson.img`: from `KEELSON_IMAGE_DIR`, else `build/`.
pub fn image(name: &str) -> Result<PathBuf> {
    existing(directory("KEELSON_IMAGE_DIR", "build").join(name), "make it with `./scripts/image`")
}
