//! The server is killed, paused, emptied, away, or loses a stream, while callers go on.

use std::time::Duration;

use async_nats::jetstream;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{deposit, outcome, transfer};
use crate::log::Log;
use crate::town::{Town, Wishes};
use crate::{BOTH, diary, until};

const FEW: Wishes = Wishes { callers: 20, each: 50, posts: false };

#[test]
fn ten_thousand_commands_of_a_hundred_callers_are_decided_once_though_the_server_is_killed_twice() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let town = Town::start(&server).await;
            let killing = async {
                for part in [3, 2] {
                    town.callers.until("a part of them", |callers| callers.told.get() >= 10_000 / part).await;
                    server.kill();
                    let before = town.callers.again.get();
                    town.callers.until("somebody to notice", |callers| callers.again.get() > before).await;
                    server.restart();
                }
            };
            town.call(Wishes { callers: 100, each: 100, posts: true }, killing).await;
            assert_eq!(town.callers.told.get(), 10_000);
            let verdict = town.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn a_server_that_stands_still_for_longer_than_the_ack_wait_changes_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let town = Town::start(&server).await;
            let pausing = async {
                town.callers.until("a part of them", |callers| callers.told.get() >= 300).await;
                server.pause();
                let before = town.callers.again.get();
                // A caller waits three times the ack wait before it asks again.
                town.callers.until("somebody to lose patience", |callers| callers.again.get() > before).await;
                server.resume();
            };
            town.call(FEW, pausing).await;
            let verdict = town.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn a_server_that_comes_back_empty_is_said_and_healed_from_the_logs() {
    for release in BOTH {
        run(async {
            let log = Log::listen();
            let mut server = NatsServer::start(release);
            let town = Town::start(&server).await;
            let emptying = async {
                for part in [3, 2] {
                    town.callers.until("a part of them", |callers| callers.told.get() >= 1_000 / part).await;
                    server.kill();
                    let before = town.callers.again.get();
                    town.callers.until("somebody to notice", |callers| callers.again.get() > before).await;
                    server.restart_empty();
                }
            };
            town.call(FEW, emptying).await;
            let verdict = town.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
            assert!(log.says("the stream was made anew") > 0, "nobody said that streams are new");
        });
    }
}

#[test]
fn a_stream_that_is_deleted_under_way_is_made_again_and_what_it_lost_comes_from_the_log() {
    for release in BOTH {
        run(async {
            let log = Log::listen();
            let server = NatsServer::start(release);
            let town = Town::start(&server).await;
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let deleting = async {
                town.callers.until("a part of them", |callers| callers.told.get() >= 300).await;
                operator.delete_stream("whizbang_events_bank").await.expect("deletes");
                town.callers.until("more of them", |callers| callers.told.get() >= 600).await;
            };
            town.call(FEW, deleting).await;
            until("the stream", async || operator.get_stream("whizbang_events_bank").await.is_ok()).await;
            until("that to be said", async || log.says("the stream was made anew") > 0).await;
            let verdict = town.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn a_node_decides_its_own_commands_while_the_server_is_away_and_catches_up_afterwards() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let town = Town::start(&server).await;
            let (money, moves) = (town.accounts.client(), town.transfers.client());
            assert_eq!(moves.send(deposit("ada", 1_000)).await.expect("is handled"), 1_000);
            server.kill();
            let away = moves.send(deposit("ada", 1)).deadline(Duration::from_secs(2)).await;
            assert!(matches!(&away, Err(error) if error.is_transient()), "{away:?}");
            let begun = tokio::time::Instant::now();
            for number in 0..100 {
                money.send(deposit("bob", 1)).await.expect("is handled here");
                moves.send(transfer(&format!("t{number}"), "ada", "cy", 5)).await.expect("begins here");
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            assert_eq!(moves.send(outcome("t0")).await.expect("is handled here"), "open");
            server.restart();
            for number in 0..100 {
                let name = format!("t{number}");
                until("the end of a transfer", async || {
                    moves.send(outcome(&name)).await.is_ok_and(|outcome| outcome == "done")
                })
                .await;
            }
            assert_eq!(money.send(deposit("cy", 0)).await.expect("is handled"), 500);
            for node in [&town.transfers, &town.accounts, &town.diary] {
                node.wait_idle().await;
            }
            // 2 + 100 + 100 deposits and 100 withdrawals of the bank (one deposit is the caller's that heard nothing, if it
            // arrived), 100 beginnings and 100 ends of transfers.
            let applied = diary::read(&town.diary.client()).await.len();
            let deposited = town.accounts.metrics().events + town.transfers.metrics().events;
            assert_eq!(applied as u64, deposited, "{release:?}");
            assert!(applied >= 502, "{applied}");
        });
    }
}
