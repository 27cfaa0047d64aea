//! Measures whizbang against its limits.

fn main() {}
