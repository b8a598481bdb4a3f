//! The machine's console: what the serial port printed lately, what waits to be typed into it, and who reads and types.
//!
//! The guest never waits for a reader: it appends to a ring of bounded size, and one thread of the monitor carries the ring to
//! each reader at the reader's own pace. A reader that falls behind by more than the ring loses the oldest bytes.

mod carrier;
mod log_file;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

pub use carrier::{Carrier, Ends, Heard, StopCarrier};
pub use log_file::{LOG_LIMIT, LogFile};

use crate::devices::serial::SharedSerial;

/// How much recent output is kept, in bytes; a new reader is sent as much.
pub const RING: usize = keelson_vmm_control::CONSOLE_REPLAY;
/// How much input may wait for the guest, in bytes; more is left with whoever types.
const INPUT: usize = 4096;

/// The console of one machine.
pub struct Console {
    state: Mutex<State>,
    /// Rung when there is something for the carrier to do.
    bell: EventFd,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

#[derive(Default)]
struct State {
    ring: VecDeque<u8>,
    /// How many bytes were ever printed: the position after the ring's last byte.
    printed: u64,
    input: VecDeque<u8>,
    port: Option<SharedSerial>,
    /// The carrier was woken and has not looked yet: another ring of the bell would be a system call for nothing.
    rung: bool,
}

impl Console {
    /// A console that nobody reads yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_bell(&self, mut state: MutexGuard<'_, State>) {
        let first = !std::mem::replace(&mut state.rung, true);
        drop(state);
        if first && let Err(e) = self.bell.write(1) {
            log::error!("the console's carrier cannot be woken: {e}");
        }
    }

    /// The guest prints.
    pub fn print(&self, bytes: &[u8]) {
        let mut state = self.state();
        let keep = bytes.get(bytes.len().saturating_sub(RING)..).unwrap_or_default();
        let over = (state.ring.len() + keep.len()).saturating_sub(RING);
        state.ring.drain(..over);
        state.ring.extend(keep);
        state.printed += u64::try_from(bytes.len()).unwrap_or_default();
        self.ring_bell(state);
    }

    /// The recent output.
    pub fn recent(&self) -> Vec<u8> {
        self.state().ring.iter().copied().collect()
    }

    /// Somebody types. Returns how many bytes were taken; the others must be offered again when there is room.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let taken = bytes.len().min(INPUT.saturating_sub(state.input.len()));
        state.input.extend(bytes.iter().take(taken));
        taken
    }

    /// Takes at most `most` bytes that wait to be typed.
    pub fn take_input(&self, most: usize) -> Vec<u8> {
        let mut state = self.state();
        let was_full = state.input.len() >= INPUT;
        let count = most.min(state.input.len());
        let bytes = state.input.drain(..count).collect();
        if was_full && count > 0 {
            self.ring_bell(state);
        }
        bytes
    }

    /// Connects the console to the machine's serial port; a machine that was reset has a new one.
    pub fn attach(&self, port: &SharedSerial) {
        self.state().port = Some(Arc::clone(port));
        crate::devices::serial::feed(port);
    }

    /// Lets go of the serial port, which dies with its machine.
    pub fn detach(&self) {
        self.state().port = None;
    }

    /// Offers the port what waits. The console's lock is not held meanwhile: the port takes it.
    fn feed(&self) {
        let port = self.state().port.clone();
        if let Some(port) = port {
            crate::devices::serial::feed(&port);
        }
    }

    fn input_room(&self) -> usize {
        INPUT.saturating_sub(self.state().input.len())
    }

    /// The output from `position` on, at most `most` bytes, and the position after it. A position that has left the ring moves to
    /// the ring's beginning.
    fn output(&self, position: u64, most: usize) -> (Vec<u8>, u64) {
        let state = self.state();
        let begin = state.printed - u64::try_from(state.ring.len()).unwrap_or_default();
        let from = position.clamp(begin, state.printed);
        let skip = usize::try_from(from - begin).unwrap_or_default();
        let bytes: Vec<u8> = state.ring.iter().skip(skip).take(most).copied().collect();
        let next = from + u64::try_from(bytes.len()).unwrap_or_default();
        (bytes, next)
    }

    fn printed(&self) -> u64 {
        self.state().printed
    }

    /// Quiets the bell; whatever happens from now on rings it again.
    fn heed(&self) {
        let _ = self.bell.read();
        self.state().rung = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A reader that reads often enough sees every byte; one that does not sees the newest, and never a byte twice.
        #[test]
        fn a_reader_sees_a_suffix_of_what_was_printed(chunks in prop::collection::vec((1usize..40_000, any::<bool>()), 1..12)) {
            let console = Console::new().unwrap();
            let (mut all, mut seen, mut position) = (vec![], vec![], 0);
            for (n, (length, reads)) in chunks.iter().enumerate() {
                let chunk: Vec<u8> = (0..*length).map(|i| (i * 7 + n) as u8).collect();
                console.print(&chunk);
                all.extend(chunk);
                prop_assert!(console.recent().len() <= RING);
                prop_assert!(all.ends_with(&console.recent()));
                if !*reads {
                    continue;
                }
                loop {
                    let (bytes, next) = console.output(position, 5000);
                    prop_assert_eq!(&all[next as usize - bytes.len()..next as usize], &bytes[..]);
                    if bytes.is_empty() { break; }
                    seen.extend(bytes);
                    position = next;
                }
            }
            prop_assert!(seen.len() <= all.len());
        }
    }

    #[test]
    fn input_is_bounded_and_what_was_not_taken_is_said() {
        let console = Console::new().unwrap();
        assert_eq!(console.type_in(&[1; INPUT + 5]), INPUT);
        assert_eq!((console.type_in(b"x"), console.input_room()), (0, 0));
        assert_eq!(console.take_input(10).len(), 10);
        assert_eq!(console.type_in(b"xyz"), 3);
    }
}
