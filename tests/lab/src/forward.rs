//! Ways into the lab for a person: a TCP port of this machine that leads to a host, a socket that leads to a console.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::console::Console;

/// Joins every connection of `listener` to `target`, on threads of the calling thread's network, until the process ends.
pub fn tcp(listener: &TcpListener, target: SocketAddr) {
    let Ok(listener) = listener.try_clone() else { return };
    std::thread::spawn(move || {
        for inside in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let Ok(outside) = TcpStream::connect(target) else { return };
                let (Ok(from), Ok(to)) = (inside.try_clone(), outside.try_clone()) else { return };
                std::thread::spawn(move || pump(outside, inside));
                pump(from, to);
            });
        }
    });
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// A socket in `directory` that shows a console and takes its keys; its path.
pub fn console(console: &Console, directory: &Path) -> Result<PathBuf> {
    let path = directory.join("console.sock");
    let listener =
        UnixListener::bind(&path).with_context(|| format!("{} could not be bound", path.display()))?;
    let (keyboard, taps) = (console.keyboard(), console.taps());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(output) = stream.try_clone() else { continue };
            taps.add(Box::new(output));
            let keyboard = keyboard.clone();
            std::thread::spawn(move || {
                // Ctrl-L: the console repaints itself for whoever has just come.
                let _ = keyboard.send(b"\x0c");
                let (mut stream, mut keys) = (stream, [0u8; 256]);
                while let Ok(n) = stream.read(&mut keys) {
                    if n == 0 || keyboard.send(keys.get(..n).unwrap_or_default()).is_err() {
                        return;
                    }
                }
                let _ = stream.flush();
            });
        }
    });
    Ok(path)
}
