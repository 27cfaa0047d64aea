use whizbang::prelude::*;

#[derive(Domain)]
enum Bank {}

fn main() {}
