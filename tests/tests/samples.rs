//! The samples print what stands beside them in `expected.txt`.

use std::process::Command;

use whizbang_tests::{root, sample};

/// Builds a sample, runs it and compares what it prints.
fn prints_what_is_expected(name: &str) {
    let ran = Command::new(sample(name)).output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{name} ended with {}: {errors}", ran.status);
    let expected = std::fs::read_to_string(root().join("samples").join(name).join("expected.txt")).unwrap();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected, "{errors}");
}

#[test]
fn hello_prints_the_balance() {
    prints_what_is_expected("hello");
}

#[test]
fn bank_moves_money_and_refunds_rejected_deposits() {
    prints_what_is_expected("bank");
}

#[test]
fn two_services_cooperate_by_messages_alone() {
    prints_what_is_expected("two-services");
}
