//! The host agent's process: reads its arguments and starts it.

fn main() {}
