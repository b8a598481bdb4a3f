//! Disks: which partitions there are, what is on them, the state partition and the words on the ESP.

mod devices;
mod esp;
mod ext4;
mod gpt;
mod grow;
mod state;

pub(crate) use esp::{Found, keelson_conf};
pub(crate) use grow::child as grow_child;
pub(crate) use state::{bring_up, grow_mounted};
