//! The server is killed, paused, emptied or down, or loses a stream, while callers continue.

use std::time::Duration;

use async_nats::jetstream;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

use crate::bank::{deposit, outcome, transfer};
use crate::log_capture::Log;
use crate::services::{Load, Services};
use crate::{BOTH, event_recorder, until};

const FEW: Load = Load { callers: 20, each: 50, posts: false };

#[test]
fn commands_are_decided_once_although_the_server_is_killed() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let services = Services::start(&server).await;
            let killing = async {
                for part in [3, 2] {
                    services
                        .callers
                        .until("a part of the commands", |callers| callers.answered.get() >= 10_000 / part)
                        .await;
                    server.kill();
                    let before = services.callers.retries.get();
                    services.callers.until("a retry", |callers| callers.retries.get() > before).await;
                    server.restart();
                }
            };
            services.call(Load { callers: 100, each: 100, posts: true }, killing).await;
            assert_eq!(services.callers.answered.get(), 10_000);
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn long_server_pause_has_no_effect() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let services = Services::start(&server).await;
            let pausing = async {
                services.callers.until("a part of the commands", |callers| callers.answered.get() >= 300).await;
                server.pause();
                let before = services.callers.retries.get();
                // A caller waits three times the ack wait before it retries.
                services.callers.until("a retry", |callers| callers.retries.get() > before).await;
                server.resume();
            };
            services.call(FEW, pausing).await;
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

/// A server that is shut down in order stops JetStream first, and its connections last.
#[test]
fn server_in_lame_duck_mode_causes_delays_only() {
    run(async {
        tokio::join!(lame_duck(Release::Distribution), lame_duck(Release::Pinned));
    });
}

async fn lame_duck(release: Release) {
    // The shortest duration that the server accepts.
    let more = "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"3s\"\n".to_owned();
    let mut server = NatsServer::start_with(release, NatsConfig { more, ..NatsConfig::default() });
    let services = Services::start(&server).await;
    let stopping = async {
        services.callers.until("a part of the commands", |callers| callers.answered.get() >= 300).await;
        let pid = server.pid().to_string();
        let signal = std::process::Command::new("kill").args(["-s", "USR2", &pid]).status().expect("runs kill");
        assert!(signal.success(), "{signal}");
        // Its state is that of a process whose end has not been waited for.
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a state");
        until("the end of the server", async || state().contains(") Z ")).await;
        server.restart();
    };
    services.call(FEW, stopping).await;
    let verdict = services.verdict().await;
    println!("{release:?}: {verdict}");
    verdict.assert_clean();
}

#[test]
fn emptied_server_is_reported_and_refilled_from_the_logs() {
    for release in BOTH {
        run(async {
            let log = Log::listen();
            let mut server = NatsServer::start(release);
            let services = Services::start(&server).await;
            let emptying = async {
                for part in [3, 2] {
                    services
                        .callers
                        .until("a part of the commands", |callers| callers.answered.get() >= 1_000 / part)
                        .await;
                    server.kill();
                    let before = services.callers.retries.get();
                    services.callers.until("a retry", |callers| callers.retries.get() > before).await;
                    server.restart_empty();
                }
            };
            services.call(FEW, emptying).await;
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
            assert!(log.says("the stream was recreated") > 0, "no node reported the new streams");
        });
    }
}

#[test]
fn deleted_stream_is_recreated_and_losses_come_from_the_log() {
    for release in BOTH {
        run(async {
            let log = Log::listen();
            let server = NatsServer::start(release);
            let services = Services::start(&server).await;
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let deleting = async {
                services.callers.until("a part of the commands", |callers| callers.answered.get() >= 300).await;
                operator.delete_stream("whizbang_events_bank").await.expect("deletes");
                services.callers.until("more commands", |callers| callers.answered.get() >= 600).await;
            };
            services.call(FEW, deleting).await;
            until("the stream", async || operator.get_stream("whizbang_events_bank").await.is_ok()).await;
            until("the report", async || log.says("the stream was recreated") > 0).await;
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn node_decides_locally_while_the_server_is_down() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let services = Services::start(&server).await;
            let (money, moves) = (services.accounts.client(), services.transfers.client());
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
            for node in [&services.transfers, &services.accounts, &services.recorder] {
                node.wait_idle().await;
            }
            // 2 + 100 + 100 deposits and 100 withdrawals of the bank (one deposit belongs to the caller without a reply, if it arrived),
            // 100 beginnings and 100 ends of transfers.
            let applied = event_recorder::read(&services.recorder.client()).await.len();
            let deposited = services.accounts.metrics().events + services.transfers.metrics().events;
            assert_eq!(applied as u64, deposited, "{release:?}");
            assert!(applied >= 502, "{applied}");
        });
    }
}
