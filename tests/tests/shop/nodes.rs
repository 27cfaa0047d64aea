//! Services of several processes that share their stores in PostgreSQL.

use whizbang_tests::postgres::PostgresServer;

use crate::shop::{Shop, assert_balanced};

#[test]
fn one_killed_process_of_three_keeps_balances() {
    let postgres = PostgresServer::start_with(&[("max_connections", "300")]);
    let shop = Shop::new();
    let file = shop.file("report.json");
    let options = ["--orders", "1000", "--nodes", "3", "--postgres", &postgres.url(), "--json", file.to_str().unwrap()];
    let output = shop.run(&options);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{log}");
    assert!(log.matches("shop: killing ").count() > 0, "no process was killed: {log}");
    let report = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_balanced(&report, 1000);
    // A later run finds the orders in the database.
    let report = shop.report(&["report", "--postgres", &postgres.url()], 0);
    assert_balanced(&report, 1000);
    let story = shop.says(&["flow", "ord-1-0000001", "--postgres", &postgres.url()], 0);
    assert!(story.contains("OrderPlaced"), "{story}");
}

#[test]
fn killed_shop_of_several_processes_resumes_on_its_own_database() {
    let shop = Shop::new();
    let run = shop.start(&["--orders", "400", "--nodes", "2"]);
    shop.wait_for_mails(40);
    run.kill();
    let mails = shop.mails();
    assert!(mails < 400, "killed too late");
    let report = shop.report(&["--orders", "400", "--nodes", "2"], 0);
    assert_balanced(&report, 400);
}
