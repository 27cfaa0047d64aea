//! Whoever is killed, with -9 and in mid-run: started again with the same data, the shop goes on, and its balances hold.

use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang_tests::brief_or_long;
use whizbang_tests::nats::{NatsServer, Release};

use crate::recount::Recount;
use crate::shop::{SERVICES, Shop, assert_balanced, signal};

#[test]
fn killed_at_any_moment_and_started_again_it_goes_on_and_ends_with_the_same_balance() {
    let shop = Shop::new();
    for mails in [0, 1, 20, 60, 120] {
        let run = shop.start(&["--orders", "300", "--seed", "3"]);
        shop.wait_for_mails(mails);
        run.kill();
    }
    assert!(shop.mails() < 300, "it was killed too late");
    let report = shop.report(&["--orders", "300", "--seed", "3"], 0);
    assert_balanced(&report, 300);
    // Once more: nothing is left to do, and the report is the same.
    assert_eq!(shop.report(&["--orders", "300", "--seed", "3"], 0), report);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn each_service_in_turn_is_killed_in_mid_run_and_the_balances_hold() {
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
fn the_server_is_killed_and_restarted_in_mid_run_and_the_balances_hold() {
    let mut server = NatsServer::start(Release::Distribution);
    let shop = Shop::new();
    let run = shop.start(&["--orders", "300", "--nats", &server.url()]);
    shop.wait_for_mails(30);
    server.restart();
    shop.wait_for_mails(90);
    // This time it forgets everything it was given to carry.
    server.restart_empty();
    assert!(shop.mails() < 300, "the server was killed too late");
    assert_eq!(run.end(), Some(0));
    assert_balanced(&shop.report(&["report"], 0), 300);
    Recount::of(&shop.data()).assert_holds();
}

#[test]
fn the_server_that_the_shop_has_started_is_killed_and_is_started_again_by_it() {
    let shop = Shop::new();
    let mut run = shop.start(&["--orders", "200", "--processes"]);
    shop.wait_for_mails(40);
    signal(server_of(run.pid()), "KILL");
    assert!(run.lives() && shop.mails() < 200, "the server was killed too late");
    assert_eq!(run.end(), Some(0));
    assert_balanced(&shop.report(&["report"], 0), 200);
}

/// The nats-server among the children of a process.
fn server_of(parent: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    let mut children = children.split_whitespace().map(|pid| pid.parse().unwrap());
    let is_server =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "nats-server");
    children.find(is_server).expect("a nats-server")
}

#[test]
fn all_of_it_is_killed_at_random_twenty_times_and_goes_on() {
    let orders = brief_or_long(400, 4000);
    let shop = Shop::new();
    let count = orders.to_string();
    let arguments = ["--orders", count.as_str(), "--seed", "5", "--processes"];
    let dice = IdSource::seeded(Clock::system(), 20);
    for kill in 0..20 {
        let run = shop.start(&arguments);
        // The moments lie between one that comes before everybody is up and one that leaves some work for the next time.
        let share = orders / 40;
        let more = usize::try_from(dice.next_u64()).unwrap_or(0) % (share + 1);
        shop.wait_for_mails((shop.mails() + more).min(orders - 1));
        assert!(shop.mails() < orders, "nothing was left to do at kill {kill}");
        run.kill();
    }
    assert_balanced(&shop.report(&arguments, 0), orders as u64);
    Recount::of(&shop.data()).assert_holds();
}
