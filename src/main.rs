//! The `resilver` daemon.

fn main() {}
