//! What a PCI function offers to the bus that holds it.

use std::io;

use super::config_space::ConfigSpace;
use crate::devices::saved::SavePiece;

/// One PCI function. Nothing here panics, whatever the guest writes; lengths are 1 to 8 bytes.
pub trait PciFunction: SavePiece + Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// Its configuration space, for the bus to place BARs.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads its configuration space.
    fn config_read(&mut self, register: u16, data: &mut [u8]) {
        self.config().read(register, data);
    }
    /// The guest writes its configuration space. BARs are the bus's affair; a function looks after its own capabilities.
    fn config_write(&mut self, register: u16, data: &[u8]) {
        self.config_mut().write(register, data);
    }

    /// The guest reads from a BAR.
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]);
    /// The guest writes to a BAR.
    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]);
    /// The BAR answers at `address` from now on, or nowhere: doorbells move with it.
    fn bar_moved(&mut self, bar: usize, address: Option<u64>);

    /// Everything as at power-on, except the BARs' addresses, which the bus sets.
    fn reset(&mut self);
    /// Quiesces whatever works on its own. When it returns, nothing of this function touches guest memory. Twice is as once.
    fn pause(&mut self);
    /// Makes durable what the guest has had answered, so that another host may go on with the same disk. The function is paused.
    fn flush(&mut self) -> io::Result<()>;
    /// Undoes [`PciFunction::pause`] and looks at everything that the guest may have asked for meanwhile.
    fn resume(&mut self);
}
