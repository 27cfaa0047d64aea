//! The HTTP gateway in front of the six services, each in its own process.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::{eventually, http_request};

use crate::recount::Recount;
use crate::shop::{Running, SERVICES, Shop};

/// The time limit for the end of an order, generous for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn gateway_places_orders_and_answers_queries() {
    let (shop, server) = (Shop::new(), NatsServer::start(Release::Pinned));
    let url = server.url();
    let services: Vec<Running> = SERVICES.iter().map(|name| shop.start(&["serve", name, "--nats", &url])).collect();
    for service in SERVICES {
        shop.pid(service);
    }
    let mut gateway = shop.command(&["gateway", "--nats", &url, "--listen", "127.0.0.1:0"]);
    let mut gateway = gateway.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(gateway.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let gateway = Running::of(gateway);
    let address = line.trim().strip_prefix("listening on http://").expect("it listens").to_owned();

    let document = include_str!("../../../samples/shop/orders/order-placed.json");
    let order = serde_json::from_str::<serde_json::Value>(document).unwrap()["payload"]["orderId"].clone();
    for placing in ["New", "Known"] {
        let placed = http_request(&address, "POST", "/orders", "", document);
        assert_eq!((placed.status, placed.body), (200, json!({ "order": order, "placing": placing })));
    }
    let invalid = http_request(&address, "POST", "/orders", "", "{}");
    assert_eq!((invalid.status, &invalid.body["code"]), (400, &json!("shop.invalid-document")));
    let ended = eventually("the order to end", TIMEOUT, || {
        let counts = http_request(&address, "GET", "/progress", "", "").body;
        let ended = counts["confirmed"].as_u64().unwrap_or(0) + counts["cancelled"].as_u64().unwrap_or(0);
        (ended == 1).then_some(counts)
    });
    assert_eq!(ended["placed"], 1);
    assert_eq!(http_request(&address, "GET", "/revenue", "", "").status, 200);
    let described = http_request(&address, "GET", "/openapi.json", "", "").body;
    assert_eq!(described["paths"]["/progress"]["get"]["operationId"], "orders.AskProgress");

    assert_eq!(gateway.stop(), Some(0));
    for service in services {
        assert_eq!(service.stop(), Some(0));
    }
    Recount::of(&shop.data()).assert_holds();
}
