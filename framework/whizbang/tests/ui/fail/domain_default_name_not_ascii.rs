use whizbang::prelude::*;

#[derive(Domain)]
struct Straße;

fn main() {}
