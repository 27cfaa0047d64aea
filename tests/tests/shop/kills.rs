//! Any process killed with SIGKILL in the middle of a run: restarted with the same data, the shop resumes and ends balanced.

use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang_tests::brief_or_long;
use whizbang_tests::nats::{NatsServer, Release};

use crate::recount::Recount;
use crate::shop::{SERVICES, Shop, assert_balanced, signal};

#[test]
fn killed_shop_resumes_and_ends_balanced() {
    let shop = Shop::new();
    for mails in [0, 1, 20, 60, 120] {
        let run = shop.start(&["--orders", "300", "--seed", "3"]);
        shop.wait_for_mails(mails);
        run.kill();
    }
    assert!(shop.mails() < 300, "killed too late");
    let report = shop.report(&["--orders", "300", "--seed", "3"], 0);
    assert_balanced(&report, 300);
    // A further run has nothing to do and prints the same report.
    assert_eq!(shop.report(&["--orders", "300", "--seed", "3"], 0), report);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn kill_of_each_service_keeps_balances() {
    let shop = Shop::new();
    let run = shop.start(&["--orders", "300", "--processes"]);
    for (service, nth) in SERVICES.into_iter().zip(0..) {
        shop.wait_for_mails(10 + 30 * nth);
        signal(shop.pid(service), "KILL");
    }
    assert!(shop.mails() < 300, "the last one was killed too late");
    assert_eq!(run.end(), Some(0));
    assert_balanced(&shop.report(&["report"], 0), 300);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn kill_of_nats_server_keeps_balances() {
    for release in [Release::Distribution, Release::Pinned] {
        let mut server = NatsServer::start(release);
        let shop = Shop::new();
        let run = shop.start(&["--orders", "300", "--nats", &server.url()]);
        shop.wait_for_mails(30);
        server.restart();
        shop.wait_for_mails(90);
        // This restart loses all messages in the server.
        server.restart_empty();
        assert!(shop.mails() < 300, "the server was killed too late");
        assert_eq!(run.end(), Some(0));
        assert_balanced(&shop.report(&["report"], 0), 300);
        Recount::of(&shop.data()).assert_holds();
    }
}

#[test]
fn shop_restarts_its_killed_nats_server() {
    let shop = Shop::new();
    let mut run = shop.start(&["--orders", "200", "--processes"]);
    shop.wait_for_mails(40);
    signal(server_of(run.pid()), "KILL");
    assert!(run.is_running() && shop.mails() < 200, "the server was killed too late");
    assert_eq!(run.end(), Some(0));
    assert_balanced(&shop.report(&["report"], 0), 200);
}

/// Returns the nats-server among the children of a process.
fn server_of(parent: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let is_server =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "nats-server");
    children.find(is_server).expect("a nats-server")
}

#[test]
fn shop_killed_twenty_times_ends_balanced() {
    let orders = brief_or_long(400, 4000);
    let shop = Shop::new();
    let count = orders.to_string();
    let arguments = ["--orders", count.as_str(), "--seed", "5", "--processes"];
    let random = IdSource::seeded(Clock::system(), 20);
    for kill in 0..20 {
        let run = shop.start(&arguments);
        // From a kill before all processes are up to one that leaves some work for the next run.
        let share = orders / 40;
        let more = usize::try_from(random.next_u64()).unwrap_or(0) % (share + 1);
        shop.wait_for_mails((shop.mails() + more).min(orders - 1));
        assert!(shop.mails() < orders, "no work left at kill {kill}");
        run.kill();
    }
    assert_balanced(&shop.report(&arguments, 0), orders as u64);
    Recount::of(&shop.data()).assert_holds();
}
