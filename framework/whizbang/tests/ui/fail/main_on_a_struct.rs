
#[whizbang::main]
struct Main;

fn main() {}
