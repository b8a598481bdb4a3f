//! Frames from the guest to the tap, straight from its memory.

use super::tap::Tap;
use super::{HEADER, MAX_FRAME, MIN_FRAME};
use crate::virtio::chain::Chain;

/// Sends what the chain holds, header first, or drops it: a network may lose frames, and says so nowhere (5.1.6.2). The kernel checks the
/// header's offsets against the frame.
pub(super) fn send(tap: &Tap, chain: &Chain<'_>) {
    let frame = &chain.readable;
    if !(HEADER + MIN_FRAME..=HEADER + MAX_FRAME).contains(&frame.len()) {
        log::debug!("virtio-net: a frame of {} bytes, header included, is dropped", frame.len());
        return;
    }
    if let Err(e) = tap.send(frame.slices()) {
        log::debug!("virtio-net: a frame of {} bytes is dropped by the tap: {e}", frame.len());
    }
}
