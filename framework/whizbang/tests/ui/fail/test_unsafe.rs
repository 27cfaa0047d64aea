
#[whizbang::test]
async unsafe fn a_deposit_is_kept() {}

fn main() {}
