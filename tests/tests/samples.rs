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

/// Returns the rest of the line in the sample's README that calls psql with this option.
fn shown_argument(option: &str) -> String {
    let readme = std::fs::read_to_string(root().join("samples/order-table/README.md")).unwrap();
    let mut lines = readme.lines().filter(|line| line.starts_with("psql "));
    lines.find_map(|line| Some(line.split_once(option)?.1.to_owned())).unwrap()
}

/// Returns the query that the sample's README shows.
fn shown_query() -> String {
    shown_argument(" -c ").trim_matches('"').to_owned()
}

#[test]
fn order_table_contains_each_order_once() {
    let server = PostgresServer::start();
    server.sql(&std::fs::read_to_string(root().join(shown_argument(" -f "))).unwrap());
    let rows = "SELECT city, bool_and(shipped) FROM shop.orders GROUP BY city ORDER BY city";
    let query = shown_query();
    for _ in 0..2 {
        assert_output_of("order-table", &[&server.url()]);
        assert_eq!(server.sql(&query), "Lima|1|500\nOslo|2|1000\nRome|3|1500");
        assert_eq!(server.sql(rows), "Lima|f\nOslo|f\nRome|t");
    }
}
