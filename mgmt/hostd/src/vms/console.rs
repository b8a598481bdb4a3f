//! A VM's serial console: its log, its live stream, and what is typed into it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use keelson_api::{Fault, Problem};
use uuid::Uuid;

use super::Vms;
use super::document::CONSOLE_LOG;
use crate::datastores::Access;
use crate::http::{Gone, Response, StreamRun};
use crate::problems;

/// The most of the log that is shown, in bytes, its end (the monitor keeps as much).
const MAX_LOG: u64 = 1 << 20;
/// The most that is typed with one request, in bytes.
pub const MAX_INPUT: usize = 64 << 10;
/// How long the guest may take to accept what is typed.
const INPUT: Duration = Duration::from_secs(10);

impl Vms {
    /// What the serial port has printed since the last power-on: the file from where it is to be read, and how many bytes.
    pub fn console_log(&self, id: Uuid) -> Result<(Box<dyn Read + Send>, u64), Problem> {
        let entry = self.inventory.get(id)?;
        let failed = |e: std::io::Error| {
            problems::file(format!("`{}/{CONSOLE_LOG}` could not be read", entry.directory), &e)
        };
        let home = self.home(&entry.directory)?;
        if home.meta(CONSOLE_LOG).map_err(failed)?.is_none() {
            return Ok((Box::new(std::io::empty()), 0));
        }
        let mut file: File = home.open(CONSOLE_LOG, Access::Read).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let shown = size.min(MAX_LOG);
        file.seek(SeekFrom::Start(size - shown)).map_err(failed)?;
        // Read now: the monitor rewrites the file when it is full, and a length once told must be kept.
        let mut text = Vec::new();
        file.take(shown).read_to_end(&mut text).map_err(failed)?;
        let length = text.len() as u64;
        Ok((Box::new(std::io::Cursor::new(text)), length))
    }

    fn connect(&self, id: Uuid) -> Result<UnixStream, Problem> {
        let entry = self.inventory.get(id)?;
        let name = entry.document.map_or_else(|_| id.to_string(), |d| d.name);
        if let Ok(None) = self.unit(id) {
            return Err(Problem::new(
                Fault::InvalidPowerState,
                format!("{name} is powered off, so its console is silent"),
            )
            .remedy("power it on; what it printed before is in `console/log`"));
        }
        UnixStream::connect(self.agent.paths.vm_console(id)).map_err(|e| {
            let detail = format!("the console of {name} does not answer: {e}");
            Problem::new(Fault::HostNotReachable, detail).remedy("read the VM's state again")
        })
    }

    /// The console as a stream: what was printed lately, then what is printed, until the VM is off or the client is gone.
    pub fn console_stream(&self, id: Uuid, gone: &Gone) -> Result<Response, Problem> {
        let mut console = self.connect(id)?;
        let other = console.try_clone().map_err(|e| {
            Problem::new(Fault::SystemError, format!("the console could not be opened: {e}"))
                .remedy("try again")
        })?;
        gone.on_gone(move || drop(other.shutdown(Shutdown::Both)));
        let run: StreamRun = Box::new(move |out: &mut dyn Write| {
            let mut bytes = vec![0; 16 << 10];
            // The end of the stream is the end of the VM's power cycle; an error is the same, told less politely.
            while let Ok(n @ 1..) = console.read(&mut bytes) {
                if out.write_all(bytes.get(..n).unwrap_or_default()).and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        });
        Ok(Response::Stream { content_type: "application/octet-stream", run })
    }

    /// Types `input` into the serial port.
    pub fn console_input(&self, id: Uuid, input: &[u8]) -> Result<(), Problem> {
        if input.len() > MAX_INPUT {
            return Err(Problem::new(
                Fault::RequestTooLarge,
                format!("more than {MAX_INPUT} bytes cannot be typed at once"),
            )
            .remedy("send it in parts"));
        }
        let mut console = self.connect(id)?;
        let typed = console.set_write_timeout(Some(INPUT)).and_then(|()| console.write_all(input));
        typed.map_err(|e| {
            Problem::new(Fault::HostNotReachable, format!("the console does not take the input: {e}"))
                .remedy("does the guest read its serial port? Try again")
        })
    }
}
