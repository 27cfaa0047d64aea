//! The output of each sample equals its `expected.txt`.

use std::process::Command;

use whizbang_tests::{root, sample};

/// Builds and runs a sample, and compares its output.
fn assert_expected_output(name: &str) {
    let ran = Command::new(sample(name)).output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{name} ended with {}: {errors}", ran.status);
    let expected = std::fs::read_to_string(root().join("samples").join(name).join("expected.txt")).unwrap();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected, "{errors}");
}

#[test]
fn hello_prints_the_balance() {
    assert_expected_output("hello");
}

#[test]
fn bank_moves_money_and_refunds_rejected_deposits() {
    assert_expected_output("bank");
}

#[test]
fn two_services_cooperate_by_messages_alone() {
    assert_expected_output("two-services");
}
