//! The first thing to read: one aggregate, one command.

fn main() {}
