//! The shop on a server with logins: the generated permissions suffice for all orders, and no service can use the permissions of
//! another.

use std::path::{Path, PathBuf};

use async_nats::{Client, ConnectOptions};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer, Release, Violations};

use crate::recount::Recount;
use crate::shop::{SERVICES, Shop, assert_balanced};

/// Starts a server that enforces the generated permissions of a shop.
fn guarded(release: Release) -> (Shop, NatsServer) {
    let shop = Shop::new();
    let said = shop.says(&["permissions"], 0);
    let file = shop.data().join("nats-permissions.conf");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    let config = NatsConfig::authorization(&std::fs::read_to_string(file).unwrap());
    (shop, NatsServer::start_with(release, config))
}

#[test]
fn generated_permissions_suffice_for_all_orders() {
    for release in [Release::Distribution, Release::Pinned] {
        let (shop, server) = guarded(release);
        // The streams do not exist yet, and a service may not create them.
        let said = shop.says(&["--orders", "1", "--nats", &server.url()], 4);
        assert!(said.contains("does not exist"), "{said}");
        shop.says(&["setup", "--nats", &server.url()], 0);
        let (file, log) = (shop.file("report.json"), "trace");
        let arguments = ["--orders", "60", "--nats", &server.url(), "--log", log, "--json", file.to_str().unwrap()];
        let said = shop.says(&arguments, 0);
        let report = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_balanced(&report, 60);
        Recount::of(&shop.data()).assert_holds();
        // Even at the level TRACE the client library does not log messages.
        assert!(said.contains("TRACE") && !said.contains("read operation"), "{}", said.len());
        let passwords = SERVICES.map(|service| password(&shop.data(), service));
        assert!(passwords.iter().all(|password| !said.contains(password)), "a password was logged");
        // No identity has attempted a forbidden operation.
        assert!(!server.log().to_lowercase().contains("permissions violation"), "{}", server.log());
    }
}

fn password(data: &Path, identity: &str) -> String {
    let file: PathBuf = data.join("nats-logins").join(identity);
    std::fs::read_to_string(file).unwrap()
}

/// Connects with the login of a service. Returns the client and its permission violations.
async fn hostile(shop: &Shop, server: &NatsServer, ns: &str, service: &str) -> (Client, Violations) {
    let (callback, violations) = Violations::watch();
    let options = ConnectOptions::with_user_and_password(service.to_owned(), password(&shop.data(), service))
        .custom_inbox_prefix(format!("_INBOX_{ns}_{service}"))
        .event_callback(callback);
    (options.connect(server.url()).await.expect("connects"), violations)
}

#[test]
fn login_of_a_service_is_good_for_nothing_of_another() {
    for release in [Release::Distribution, Release::Pinned] {
        let (shop, server) = guarded(release);
        shop.says(&["setup", "--nats", &server.url()], 0);
        assert_balanced(&shop.report(&["--orders", "20", "--nats", &server.url()], 0), 20);
        let ns = std::fs::read_to_string(shop.data().join("namespace")).unwrap();
        let ns = ns.trim();
        run(async {
            let (client, mut violations) = hostile(&shop, &server, ns, "shipping").await;
            let api = [
                "STREAM.CREATE.NS_events_shipping",
                "STREAM.CREATE.stolen",
                "STREAM.DELETE.NS_events_inventory",
                "STREAM.PURGE.NS_events_inventory",
                "STREAM.MSG.GET.NS_events_inventory",
                "CONSUMER.CREATE.NS_events_inventory.shipping",
                "CONSUMER.MSG.NEXT.NS_events_inventory.analytics",
                "CONSUMER.MSG.NEXT.NS_commands_payments.payments",
            ];
            let api = api.map(|request| format!("$JS.API.{}", request.replace("NS", ns)));
            let own = ["evt.inventory.0.Reserved", "cmd.payments.0.orders.0", "claim.inventory", "head.orders.0"];
            for subject in api.into_iter().chain(own.map(|subject| format!("{ns}.{subject}"))) {
                client.publish(subject.clone(), "{}".into()).await.expect("writes");
                violations.expect(&client, &format!("publishing to {subject}")).await;
            }
            let mut kept = Vec::new();
            for subject in ["evt.inventory.>", "cmd.>", "ask.payments.>", ">"] {
                kept.push(client.subscribe(format!("{ns}.{subject}")).await.expect("writes"));
                violations.expect(&client, &format!("subscribing to {subject}")).await;
            }
        });
        assert_balanced(&shop.report(&["--orders", "30", "--nats", &server.url()], 0), 30);
    }
}
