//! The terminal: raw mode, passwords, questions.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

use crate::failure::Failure;

/// A terminal whose modes were changed; they are set back when this is dropped.
#[derive(Debug)]
pub(crate) struct Changed {
    terminal: File,
    before: Termios,
}

impl Changed {
    fn change(terminal: File, change: impl FnOnce(&mut Termios)) -> std::io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut modes = before.clone();
        change(&mut modes);
        tcsetattr(&terminal, OptionalActions::Flush, &modes)?;
        Ok(Self { terminal, before })
    }

    /// Raw mode on standard input, if that is a terminal.
    pub(crate) fn raw_stdin() -> Result<Option<Self>, Failure> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let duplicate = stdin
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Failure::local("the terminal cannot be used", e))?;
        Self::change(duplicate.into(), Termios::make_raw)
            .map(Some)
            .map_err(|e| Failure::local("the terminal cannot be set to raw mode", e))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

fn tty() -> Option<File> {
    File::options().read(true).write(true).open("/dev/tty").ok()
}

fn read_line(from: impl std::io::Read) -> Result<String, Failure> {
    let mut line = String::new();
    let read = BufReader::new(from)
        .read_line(&mut line)
        .map_err(|e| Failure::local("the answer cannot be read", e))?;
    if read == 0 {
        return Err(Failure::Usage("there was no answer".into()));
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// One line from standard input.
pub(crate) fn line_from_stdin() -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|e| Failure::local("standard input cannot be read", e))?;
    let line = line.trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        Err(Failure::Usage("standard input holds no password".into()))
    } else {
        Ok(line.to_owned())
    }
}

/// A password, typed unseen.
pub(crate) fn password(prompt: &str) -> Result<String, Failure> {
    let mut tty = tty().ok_or_else(|| {
        Failure::Usage("there is no terminal to ask for a password; use --password-stdin".into())
    })?;
    let failed = |e| Failure::local("the terminal cannot be used", e);
    let unseen =
        Changed::change(tty.try_clone().map_err(failed)?, |modes| modes.local_modes.remove(LocalModes::ECHO))
            .map_err(failed)?;
    write!(tty, "{prompt}").and_then(|()| tty.flush()).map_err(failed)?;
    let line = read_line(&tty);
    drop(unseen);
    let _ = writeln!(tty);
    line
}

/// Yes or no; no without a terminal.
pub(crate) fn confirm(question: &str) -> Result<bool, Failure> {
    let mut tty = tty().ok_or_else(|| Failure::Usage(format!("{question}\nThere is no terminal to answer on: give --fingerprint (or, where nothing is known yet, --yes)")))?;
    write!(tty, "{question} [y/N] ")
        .and_then(|()| tty.flush())
        .map_err(|e| Failure::local("the terminal cannot be used", e))?;
    Ok(matches!(read_line(&tty)?.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Whether standard error is a terminal: progress is shown there only.
pub(crate) fn shows_progress() -> bool {
    isatty(std::io::stderr())
}
