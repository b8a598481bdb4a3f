//! The line that the console is on: raw mode, size, bytes in and out.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::termios::{
    ControlModes, OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};

/// A serial line does not know its size; this is what its other end is expected to have.
const DEFAULT: (u16, u16) = (80, 24);

/// A terminal in raw mode. It is set back when this is dropped.
#[derive(Debug)]
pub(crate) struct Line {
    file: File,
    before: Termios,
}

impl Line {
    /// Opens a terminal device and makes it this process's controlling terminal if it can be.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        // A process that leads a session already stays where it is.
        let _ = nix::unistd::setsid();
        Self::take(File::options().read(true).write(true).open(path)?)
    }

    /// Takes the terminal that is standard input, as init passes it.
    pub(crate) fn standard_input() -> io::Result<Self> {
        Self::take(File::from(io::stdin().as_fd().try_clone_to_owned()?))
    }

    fn take(file: File) -> io::Result<Self> {
        let before = tcgetattr(&file)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Kept, so that what the kernel or init prints on this line later does not run down in stairs; ours is not changed by it.
        raw.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
        raw.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        tcsetattr(&file, OptionalActions::Now, &raw)?;
        Ok(Self { file, before })
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> (u16, u16) {
        match tcgetwinsize(&self.file) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (size.ws_col.clamp(DEFAULT.0, 240), size.ws_row.clamp(DEFAULT.1, 100))
            }
            _ => DEFAULT,
        }
    }

    /// A second handle, to read from on another thread.
    pub(crate) fn reader(&self) -> io::Result<impl Read + Send + use<>> {
        self.file.try_clone()
    }

    /// Writes all of it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.file, OptionalActions::Now, &self.before);
    }
}
