//! `Panics`, alone in its own process because it counts all panics of the process.

use std::panic;

use whizbang_tests::Panics;

#[test]
fn caught_panic_is_counted() {
    let panics = Panics::watch();
    let caught = panic::catch_unwind(|| panic!("planned: a handler fails"));
    assert!(caught.is_err());
    panics.assert_only(&["planned: "]);
    let failed = panic::catch_unwind(|| panics.assert_only(&[])).unwrap_err();
    assert!(failed.downcast_ref::<String>().unwrap().contains("1 unplanned panics"));
}
