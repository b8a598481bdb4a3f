//! `vm console`: a guest's serial port on this terminal, or between pipes.

use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use keelson_api::client::Client;
use keelson_api::{PowerState, Vm};
use uuid::Uuid;

use crate::failure::Failure;
use crate::output;
use crate::terminal::Changed;

/// Ctrl-]: quits.
const QUIT: u8 = 0x1d;

/// Why the conversation ended.
enum Ended {
    /// The person quit.
    Quit,
    /// The guest's side ended: it is off.
    Off,
    /// Whoever read our output has gone.
    OutputClosed,
    /// Something failed.
    Failed(Failure),
}

/// Prints what the port printed lately, then what it prints, and types what is typed here. Ends when the VM is off, or by Ctrl-].
pub(crate) fn run(client: &Client, vm: &Vm, log_only: bool) -> Result<(), Failure> {
    if log_only || vm.power_state == PowerState::PoweredOff {
        output::bytes(&client.console_log(vm.id)?)?;
        if !log_only {
            eprintln!("keelctl: {} is off; that was its last output. `keelctl vm start` starts it.", vm.name);
        }
        return Ok(());
    }
    // It begins with what was printed lately.
    let stream = client.console_stream(vm.id)?;
    let raw = Changed::raw_stdin()?;
    if raw.is_some() {
        eprint!("Connected to the console of {}. Ctrl-] quits.\r\n", vm.name);
    }
    let (tell, told) = channel();
    spawn("output", {
        let tell = tell.clone();
        move || {
            let _ = tell.send(copy_out(stream));
        }
    })?;
    spawn("input", {
        let (client, id, tell) = (client.clone(), vm.id, tell);
        let is_terminal = raw.is_some();
        move || type_in(&client, id, std::io::stdin(), is_terminal, &tell)
    })?;
    // Both threads hold a sender until they have told; a closed channel means that neither is left.
    let ended = told.recv().unwrap_or(Ended::Off);
    drop(raw);
    match ended {
        Ended::Quit => eprintln!("\nLeft the console of {}; the VM goes on.", vm.name),
        Ended::Off => eprintln!("\n{} is off.", vm.name),
        Ended::OutputClosed => return Err(Failure::OutputClosed),
        Ended::Failed(failure) => return Err(failure),
    }
    Ok(())
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map(drop)
        .map_err(|e| Failure::local("no thread could be started", e))
}

fn copy_out(mut stream: impl Read) -> Ended {
    let mut out = std::io::stdout();
    let mut buffer = [0; 16 * 1024];
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => return Ended::Off,
            Ok(n) => n,
            Err(e) => {
                return Ended::Failed(Failure::local("the console's stream broke; the VM may go on", e));
            }
        };
        match out.write_all(buffer.get(..n).unwrap_or_default()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ended::OutputClosed,
            Err(e) => return Ended::Failed(Failure::local("standard output cannot be written", e)),
        }
    }
}

/// Types what comes in. The end of the input is not the end of the conversation: the guest's answer is still to come.
fn type_in(client: &Client, id: Uuid, mut input: impl Read, is_terminal: bool, tell: &Sender<Ended>) {
    let mut buffer = [0; 4096];
    loop {
        let n = match input.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => {
                let _ = tell.send(Ended::Failed(Failure::local("standard input cannot be read", e)));
                return;
            }
        };
        let typed = buffer.get(..n).unwrap_or_default();
        // In a pipe the byte is data like any other.
        let quit = typed.iter().position(|b| is_terminal && *b == QUIT);
        let typed = typed.get(..quit.unwrap_or(n)).unwrap_or_default();
        if !typed.is_empty()
            && let Err(e) = client.console_input(id, typed)
        {
            let _ = tell.send(Ended::Failed(e.into()));
            return;
        }
        if quit.is_some() {
            let _ = tell.send(Ended::Quit);
            return;
        }
    }
}
