
#[whizbang::test]
fn a_deposit_is_kept() {}

fn main() {}
