//! All orders end and all balances hold: in one process, over NATS, as processes, and as parts that a person starts.

use std::time::Duration;

use serde_json::Value;
use whizbang_tests::eventually;
use whizbang_tests::nats::{NatsServer, Release};

use crate::recount::Recount;
use crate::shop::{SERVICES, Shop, assert_balanced, said as said_by};

#[test]
fn in_one_process_every_order_ends_and_all_balances_hold() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "300", "--seed", "7"], 0);
    assert_balanced(&report, 300);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn over_nats_every_order_ends_and_all_balances_hold() {
    for release in [Release::Distribution, Release::Pinned] {
        let server = NatsServer::start(release);
        let shop = Shop::new();
        let report = shop.report(&["--orders", "100", "--nats", &server.url()], 0);
        assert_balanced(&report, 100);
        Recount::of(&shop.data()).assert_holds();
    }
}

#[test]
fn as_processes_every_order_ends_and_all_balances_hold() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "200", "--processes"], 0);
    assert_balanced(&report, 200);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn the_parts_of_the_shop_work_when_a_person_runs_them_by_hand() {
    let server = NatsServer::start(Release::Distribution);
    let shop = Shop::new();
    let serve = |service: &str| shop.start(&["serve", service, "--nats", &server.url()]);
    let services: Vec<_> = SERVICES.into_iter().map(serve).collect();
    let said = shop.says(&["place", "--orders", "50", "--nats", &server.url()], 0);
    assert!(said.contains("all orders have ended"), "{said}");

    // What analytics has heard last is saved a moment later.
    let report = eventually("the report of the running shop to be even", Duration::from_secs(60), || {
        let report = shop.run(&["report", "--json", shop.file("running.json").to_str().unwrap()]);
        matches!(report.status.code(), Some(0)).then_some(report)
    });
    assert!(said_by(&report).contains("balanced"), "{}", said_by(&report));
    let report: Value = serde_json::from_slice(&std::fs::read(shop.file("running.json")).unwrap()).unwrap();
    assert_eq!(report["running"], true, "{report:#}");
    assert_balanced(&report, 50);
    assert!(shop.says(&["flow", "ord-1-0000003"], 0).contains("OrderPlaced"), "while the services are at work");

    for service in services {
        assert_eq!(service.stop(), Some(0));
    }
    assert_balanced(&shop.report(&["report"], 0), 50);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn two_shops_on_one_server_have_nothing_to_do_with_each_other() {
    let server = NatsServer::start(Release::Distribution);
    let shops = [Shop::new(), Shop::new()];
    let file = shops[0].file("other.json");
    let other = shops[1].start(&["--orders", "40", "--nats", &server.url(), "--json", file.to_str().unwrap()]);
    assert_balanced(&shops[0].report(&["--orders", "60", "--nats", &server.url()], 0), 60);
    assert_eq!(other.end(), Some(0));
    assert_balanced(&serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(), 40);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let said = Shop::new().says(&["--orders", "1", "--nats", "nats://127.0.0.1:1"], 4);
    assert!(said.contains("failed to reach nats://127.0.0.1:1"), "{said}");
}

#[test]
fn what_was_placed_before_is_known_and_the_report_stays_the_same() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "50"], 0);
    let said = shop.says(&["--orders", "50"], 0);
    assert!(said.contains("50 of these orders were known from before"), "{said}");
    assert_eq!(shop.report(&["report"], 0), report);
}
