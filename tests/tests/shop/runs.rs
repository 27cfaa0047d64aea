//! All orders end and all balances hold: in one process, over NATS, as processes, and with services started one by one.

use std::time::Duration;

use serde_json::Value;
use whizbang_tests::eventually;
use whizbang_tests::nats::{NatsServer, Release};

use crate::recount::Recount;
use crate::shop::{SERVICES, Shop, assert_balanced, said as said_by};

#[test]
fn one_process_ends_all_orders_balanced() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "300", "--seed", "7"], 0);
    assert_balanced(&report, 300);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn nats_link_ends_all_orders_balanced() {
    for release in [Release::Distribution, Release::Pinned] {
        let server = NatsServer::start(release);
        let shop = Shop::new();
        let report = shop.report(&["--orders", "100", "--nats", &server.url()], 0);
        assert_balanced(&report, 100);
        Recount::of(&shop.data()).assert_holds();
    }
}

#[test]
fn separate_processes_end_all_orders_balanced() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "200", "--processes"], 0);
    assert_balanced(&report, 200);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn services_started_one_by_one_end_all_orders_balanced() {
    let server = NatsServer::start(Release::Distribution);
    let shop = Shop::new();
    let serve = |service: &str| shop.start(&["serve", service, "--nats", &server.url()]);
    let services: Vec<_> = SERVICES.into_iter().map(serve).collect();
    let said = shop.says(&["place", "--orders", "50", "--nats", &server.url()], 0);
    assert!(said.contains("all orders have ended"), "{said}");

    // Analytics saves its view a moment after the last event.
    let report = eventually("a balanced report of the running shop", Duration::from_secs(60), || {
        let report = shop.run(&["report", "--json", shop.file("running.json").to_str().unwrap()]);
        matches!(report.status.code(), Some(0)).then_some(report)
    });
    assert!(said_by(&report).contains("balanced"), "{}", said_by(&report));
    let report: Value = serde_json::from_slice(&std::fs::read(shop.file("running.json")).unwrap()).unwrap();
    assert_eq!(report["running"], true, "{report:#}");
    assert_balanced(&report, 50);
    assert!(shop.says(&["flow", "ord-1-0000003"], 0).contains("OrderPlaced"), "while the services are running");

    for service in services {
        assert_eq!(service.stop(), Some(0));
    }
    assert_balanced(&shop.report(&["report"], 0), 50);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn two_shops_on_one_server_are_independent() {
    let server = NatsServer::start(Release::Distribution);
    let shops = [Shop::new(), Shop::new()];
    let file = shops[0].file("other.json");
    let other = shops[1].start(&["--orders", "40", "--nats", &server.url(), "--json", file.to_str().unwrap()]);
    assert_balanced(&shops[0].report(&["--orders", "60", "--nats", &server.url()], 0), 60);
    assert_eq!(other.end(), Some(0));
    assert_balanced(&serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap(), 40);
}

#[test]
fn unreachable_server_is_reported() {
    let said = Shop::new().says(&["--orders", "1", "--nats", "nats://127.0.0.1:1"], 4);
    assert!(said.contains("failed to reach nats://127.0.0.1:1"), "{said}");
}

#[test]
fn repeated_run_places_nothing_and_keeps_the_report() {
    let shop = Shop::new();
    let report = shop.report(&["--orders", "50"], 0);
    let said = shop.says(&["--orders", "50"], 0);
    assert!(said.contains("50 of these orders were placed before"), "{said}");
    assert_eq!(shop.report(&["report"], 0), report);
}
