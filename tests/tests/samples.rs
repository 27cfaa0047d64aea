//! The samples print what stands beside them in `expected.txt`.

use std::path::PathBuf;
use std::process::Command;

/// Builds a sample, runs it and compares what it prints.
fn prints_what_is_expected(sample: &str) {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", sample, "--message-format=json-render-diagnostics"])
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // The folder of the programs may be set from outside, so cargo says where it has put this one.
    let program = String::from_utf8(built.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program");
    let ran = Command::new(program).output().unwrap();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{sample} ended with {}: {errors}", ran.status);
    let expected = std::fs::read_to_string(root.join("samples").join(sample).join("expected.txt")).unwrap();
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), expected, "{errors}");
}

#[test]
fn hello_prints_the_balance() {
    prints_what_is_expected("hello");
}

#[test]
fn bank_moves_money_and_brings_back_what_cannot_arrive() {
    prints_what_is_expected("bank");
}

#[test]
fn two_services_work_together_through_messages_alone() {
    prints_what_is_expected("two-services");
}
