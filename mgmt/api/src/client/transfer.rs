//! Long bodies: files up and down, and consoles.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::Method;
use uuid::Uuid;

use super::calls::file_path;
use super::error::Doing;
use super::{Client, ClientError, Payload, agent};
use crate::FileEntry;

/// How long a host may take to make a file durable after its last byte.
const FLUSH: Duration = Duration::from_secs(600);

impl Client {
    /// Uploads exactly `length` bytes from `from` as a file. `progress` is called with the count of bytes sent so far.
    pub fn upload(
        &self,
        datastore: &str,
        path: &str,
        from: &mut dyn Read,
        length: u64,
        progress: &mut dyn FnMut(u64),
    ) -> Result<FileEntry, ClientError> {
        // A connection of its own: when the host refuses half-way, that is known of this one only.
        let gone = Arc::new(AtomicBool::new(false));
        let agent = agent(&self.endpoint, Arc::clone(&gone));
        let mut source = Source { from, length, sent: 0, gone, progress, failed: None };
        let request = file_path(datastore, path);
        let sent = self.send(&agent, Method::PUT, &request, Payload::Stream(&mut source, length), FLUSH);
        if let Some(cause) = source.failed {
            return Err(ClientError::Local {
                what: format!("what was to be uploaded as [{datastore}] {path} could not be read to its end"),
                source: cause,
            });
        }
        self.decode("PUT of a file", sent?)
    }

    /// Downloads a file. Returns its length, when the host says it, and a reader of its bytes.
    pub fn download(
        &self,
        datastore: &str,
        path: &str,
    ) -> Result<(Option<u64>, impl Read + Send + use<>), ClientError> {
        let reply = self.send(
            &self.agent,
            Method::GET,
            &file_path(datastore, path),
            Payload::Nothing,
            Duration::ZERO,
        )?;
        let body = reply.into_body();
        Ok((body.content_length(), body.into_with_config().limit(u64::MAX).reader()))
    }

    /// Downloads a file into `to`; returns how many bytes. A file that ends early is an error.
    pub fn download_to(
        &self,
        datastore: &str,
        path: &str,
        to: &mut dyn Write,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<u64, ClientError> {
        let (length, mut reader) = self.download(datastore, path)?;
        let doing = Doing { host: self.host(), request: format!("GET {}", file_path(datastore, path)) };
        let mut buffer = vec![0; 256 * 1024];
        let mut done = 0;
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(ClientError::of(&doing, ureq::Error::Io(e))),
            };
            to.write_all(buffer.get(..n).unwrap_or_default()).map_err(|source| ClientError::Local {
                what: format!("[{datastore}] {path} could not be written here"),
                source,
            })?;
            done += n as u64;
            progress(done, length);
        }
        match length {
            Some(length) if length != done => Err(ClientError::of(
                &doing,
                ureq::Error::Io(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{done} of {length} bytes came"),
                )),
            )),
            _ => Ok(done),
        }
    }

    /// What a VM's serial port printed lately.
    pub fn console_log(&self, id: Uuid) -> Result<Vec<u8>, ClientError> {
        let mut reply = self.send(
            &self.agent,
            Method::GET,
            &format!("/vms/{id}/console/log"),
            Payload::Nothing,
            Duration::ZERO,
        )?;
        let doing = Doing { host: self.host(), request: "GET of a console log".into() };
        reply
            .body_mut()
            .with_config()
            .limit(super::MAX_REPLY)
            .read_to_vec()
            .map_err(|e| ClientError::of(&doing, e))
    }

    /// What a VM's serial port printed lately, then what it prints, until the VM is off. A read waits without limit.
    pub fn console_stream(&self, id: Uuid) -> Result<impl Read + Send + use<>, ClientError> {
        let reply = self.send(
            &self.agent,
            Method::GET,
            &format!("/vms/{id}/console/stream"),
            Payload::Nothing,
            Duration::ZERO,
        )?;
        Ok(reply.into_body().into_with_config().limit(u64::MAX).reader())
    }
}

/// The body of an upload: exactly `length` bytes, or an error.
struct Source<'a> {
    from: &'a mut dyn Read,
    length: u64,
    sent: u64,
    gone: Arc<AtomicBool>,
    progress: &'a mut dyn FnMut(u64),
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length - self.sent).unwrap_or(usize::MAX).min(buf.len());
        let Some(room) = buf.get_mut(..left) else { return Ok(0) };
        if room.is_empty() {
            return Ok(0);
        }
        let n = if self.gone.load(Ordering::Relaxed) {
            // Nobody takes it any more: finish without reading the rest of the source, to get at the host's answer.
            room.len()
        } else {
            match self.from.read(room) {
                Ok(n) if n > 0 => n,
                ended => {
                    let cause = ended.err().unwrap_or_else(|| {
                        io::Error::new(
                            io::ErrorKind::UnexpectedEof,
                            format!("it ended after {} of {} bytes", self.sent, self.length),
                        )
                    });
                    let told = io::Error::new(cause.kind(), cause.to_string());
                    self.failed = Some(cause);
                    return Err(told);
                }
            }
        };
        self.sent += n as u64;
        if !self.gone.load(Ordering::Relaxed) {
            (self.progress)(self.sent);
        }
        Ok(n)
    }
}
