
#[whizbang::main]
fn main() {}
