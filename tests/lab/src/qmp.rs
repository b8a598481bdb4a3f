//! QEMU's machine protocol (docs/interop/qmp-spec in QEMU): one command at a time, events passed over.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A QMP connection.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qmp {
    /// Takes over a connection that QEMU made and negotiates.
    pub fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { reader: BufReader::new(stream.try_clone()?), writer: stream };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greeted with {greeting}");
        }
        qmp.call("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line).context("QEMU does not answer on QMP")? == 0 {
            bail!("QEMU closed QMP");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Executes a command and returns its result.
    pub fn call(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        self.writer.write_all(text.as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    /// A picture of the VGA console, as PPM.
    pub fn screendump(&mut self, file: &Path) -> Result<()> {
        self.call("screendump", json!({ "filename": file })).map(|_| ())
    }

    /// Pulls or plugs the cable of the NIC with this id.
    pub fn set_link(&mut self, nic: &str, up: bool) -> Result<()> {
        self.call("set_link", json!({ "name": nic, "up": up })).map(|_| ())
    }
}
