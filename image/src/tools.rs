//! Which programs of the distribution a command needs, and running them with errors that name them.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a tool did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Programs or files are not installed.
    #[error("not installed: {}\ninstall with: apt-get install {}", .what.join(", "), .packages.join(" "))]
    Missing {
        /// What was looked for.
        what: Vec<String>,
        /// The Debian packages that have it.
        packages: Vec<String>,
    },
    /// The program could not be started.
    #[error("cannot start {tool}")]
    Start {
        /// Name of the program.
        tool: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The program ran and failed.
    #[error("{tool} failed ({status}): {said}")]
    Failed {
        /// Name of the program.
        tool: String,
        /// How it ended.
        status: String,
        /// Its last words on standard error.
        said: String,
    },
}

/// A program and the package that has it.
pub struct Tool(pub &'static str, pub &'static str);

/// What fetching needs.
pub const FETCH: &[Tool] =
    &[Tool("apt-get", "apt"), Tool("apt-config", "apt"), Tool("dpkg", "dpkg"), Tool("dpkg-deb", "dpkg")];
/// What a build needs besides what fetching needs.
pub const BUILD: &[Tool] = &[Tool("mkfs.ext4", "e2fsprogs"), Tool("cargo", "cargo")];

/// Where Debian's archive keys are; the first that exists is taken.
pub const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Checks that all of `tools` and the archive's keyring are there, and names every package that is missing at once.
pub fn require(tools: &[&[Tool]]) -> Result<(), ToolError> {
    let mut what = Vec::new();
    let mut packages = Vec::new();
    for Tool(name, package) in tools.iter().copied().flatten() {
        if find(name).is_none() {
            what.push((*name).to_owned());
            packages.push((*package).to_owned());
        }
    }
    // Either verifier will do: apt of Debian 13 calls sqv, all others gpgv.
    if find("gpgv").is_none() && find("sqv").is_none() {
        what.push("gpgv".to_owned());
        packages.push("gpgv".to_owned());
    }
    if keyring().is_none() {
        what.push("Debian's archive keys".to_owned());
        packages.push("debian-archive-keyring".to_owned());
    }
    if what.is_empty() {
        return Ok(());
    }
    packages.sort_unstable();
    packages.dedup();
    Err(ToolError::Missing { what, packages })
}

/// The keyring that the archive is verified with.
pub fn keyring() -> Option<&'static Path> {
    KEYRINGS.iter().map(Path::new).find(|path| path.exists())
}

/// Where `name` is; the system directories count even when a user's PATH leaves them out, as Debian's does.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command for `name`, in the C locale so that its output can be read.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(find(name).as_deref().unwrap_or(Path::new(name)));
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// Runs `command` and returns what it wrote to standard output.
pub fn output(mut command: Command) -> Result<Vec<u8>, ToolError> {
    let tool = name_of(&command);
    let out = command.output().map_err(|source| ToolError::Start { tool: tool.clone(), source })?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    Err(ToolError::Failed { tool, status: out.status.to_string(), said: last_words(&out.stderr) })
}

/// The name of the program that `command` runs.
pub fn name_of(command: &Command) -> String {
    Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

/// The last lines of what a program wrote to standard error.
pub fn last_words(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines.get(lines.len().saturating_sub(6)..).unwrap_or_default();
    if tail.is_empty() { "it gave no reason".to_owned() } else { tail.join("\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_package_is_named_once() {
        let none = &[Tool("no-such-program-1", "one"), Tool("no-such-program-2", "one"), Tool("sh", "dash")];
        let Err(ToolError::Missing { what, packages }) = require(&[none]) else { panic!("expected a list") };
        assert!(what.iter().any(|name| name == "no-such-program-2"));
        assert_eq!(packages.iter().filter(|name| *name == "one").count(), 1);
        assert!(!packages.iter().any(|name| name == "dash"));
    }

    #[test]
    fn a_failing_tool_is_quoted() {
        let mut sh = command("sh");
        sh.args(["-c", "echo first >&2; echo no such thing >&2; exit 3"]);
        let error = output(sh).map_err(|error| error.to_string());
        assert!(error.is_err_and(|text| text.contains("sh failed") && text.contains("no such thing")));
    }
}
