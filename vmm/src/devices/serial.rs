//! COM1: a 16550 whose output goes to the console and whose input comes from it.
//!
//! Saved: the chip's registers and its receive FIFO. Not saved: what waits in the console to be typed.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use super::bus::BusDevice;
use super::saved::{BadState, Saved, versioned};
use crate::console::Console;

/// The first port.
pub const COM1: u16 = 0x3f8;
/// How many ports there are.
pub const COM1_PORTS: u16 = 8;
/// The interrupt, edge-triggered.
pub const COM1_IRQ: u32 = 4;
/// The chip's receive FIFO, in bytes.
const FIFO: usize = 64;

/// An edge-triggered interrupt by irqfd.
#[derive(Debug)]
pub struct Edge(pub EventFd);

impl Trigger for Edge {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Output(Arc<Console>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.print(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port.
pub struct SerialPort {
    chip: Serial<Edge, NoEvents, Output>,
    console: Arc<Console>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SerialPort")
    }
}

/// A port that the console can type into.
pub type SharedSerial = Arc<Mutex<SerialPort>>;

impl SerialPort {
    /// As after power-on.
    pub fn new(interrupt: EventFd, console: Arc<Console>) -> Self {
        let chip = Serial::new(Edge(interrupt), Output(Arc::clone(&console)));
        Self { chip, console }
    }

    /// Types what waits in the console into the chip, as far as its FIFO has room.
    pub fn feed(&mut self) {
        let room = self.chip.fifo_capacity();
        if room == 0 {
            return;
        }
        let bytes = self.console.take_input(room);
        if !bytes.is_empty()
            && let Err(e) = self.chip.enqueue_raw_bytes(&bytes)
        {
            log::warn!("input to the serial port was lost: {e}");
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.chip.read(u8::try_from(at).unwrap_or(u8::MAX));
        }
        if self.chip.fifo_capacity() == FIFO {
            self.feed();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            if let Err(e) = self.chip.write(u8::try_from(at).unwrap_or(u8::MAX), *byte) {
                log::debug!("a write to the serial port failed: {e}");
            }
        }
    }
}

/// What travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialV1 {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    fifo: Vec<u8>,
}

versioned!(SerialV1 = 1, for tests SerialV0 = 0 {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    fifo: Vec<u8>,
} without { scratch = 0 });

impl Saved for SerialPort {
    const KIND: &'static str = "uart-16550";
    type State = SerialV1;
    type Host = (EventFd, Arc<Console>);

    fn save(&self) -> SerialV1 {
        let state = self.chip.state();
        SerialV1 {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            fifo: state.in_buffer,
        }
    }

    fn restore(state: SerialV1, (interrupt, console): Self::Host) -> Result<Self, BadState> {
        let [baud_divisor_low, baud_divisor_high] = state.divisor;
        let chip = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.fifo,
        };
        let chip = Serial::from_state(&chip, Edge(interrupt), NoEvents, Output(Arc::clone(&console)));
        Ok(Self { chip: chip.map_err(|e| BadState::new("fifo", e.to_string()))?, console })
    }
}

/// Types what waits into the port, from outside the machine.
pub fn feed(port: &SharedSerial) {
    port.lock().unwrap_or_else(PoisonError::into_inner).feed();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> (SerialPort, Arc<Console>, EventFd) {
        let console = Arc::new(Console::new().unwrap());
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (SerialPort::new(event.try_clone().unwrap(), Arc::clone(&console)), console, event)
    }

    fn get(port: &mut SerialPort, offset: u64) -> u8 {
        let mut byte = [0];
        port.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn what_the_guest_writes_is_printed() {
        let (mut port, console, _) = port();
        port.write(0, b"h");
        port.write(0, b"i");
        assert_eq!(console.recent(), b"hi");
    }

    #[test]
    fn long_input_arrives_whole_and_in_order_as_the_guest_reads() {
        let (mut port, console, event) = port();
        let text: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
        assert_eq!(console.type_in(&text), text.len());
        port.write(1, &[1]);
        port.feed();
        assert!(event.read().is_ok(), "received data interrupts");
        let mut got = vec![];
        while get(&mut port, 5) & 1 != 0 {
            got.push(get(&mut port, 0));
        }
        assert_eq!(got, text);
    }

    #[test]
    fn a_restored_port_still_holds_what_was_received() {
        let (mut port, console, _) = port();
        console.type_in(b"abc");
        port.write(7, &[0x5a]);
        port.feed();
        let host = (EventFd::new(0).unwrap(), console);
        let mut again = SerialPort::restore(port.save(), host).unwrap();
        assert_eq!((get(&mut again, 7), get(&mut again, 0), get(&mut again, 0)), (0x5a, b'a', b'b'));
        let long = SerialV1 { fifo: vec![0; FIFO + 1], ..port.save() };
        let (_, console, event) = self::port();
        assert_eq!(SerialPort::restore(long, (event, console)).unwrap_err().field, "fifo");
    }
}
