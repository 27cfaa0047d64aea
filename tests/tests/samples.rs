//! The output of each sample equals its `expected.txt`.

use std::process::Command;

use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{root, sample};

/// Builds and runs a sample, and compares its output.
fn assert_expected_output(name: &str) {
    assert_output_of(name, &[]);
}

fn assert_output_of(name: &str, arguments: &[&str]) {
    let ran = Command::new(sample(name)).args(arguments).output().unwrap();
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

#[test]
fn order_table_contains_each_order_once() {
    let server = PostgresServer::start();
    server.sql(&std::fs::read_to_string(root().join("samples/order-table/tables.sql")).unwrap());
    let rows = "SELECT city, count(*), sum(cents), bool_and(shipped) FROM shop.orders GROUP BY city ORDER BY city";
    for _ in 0..2 {
        assert_output_of("order-table", &[&server.url()]);
        assert_eq!(server.sql(rows), "Lima|1|500|f\nOslo|2|1000|f\nRome|3|1500|t");
    }
}
