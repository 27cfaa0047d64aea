//! A cluster of three servers with three replicas of each stream: a leader is killed, a server is lost, the quorum is lost.
//!
//! Callers see delays and nothing else.

use std::time::Duration;

use tokio::time::Instant;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsCluster, is_replicated, stream_leader};

use crate::services::{Load, Services};
use crate::{BOTH, until};

const REPLICAS: u8 = 3;
const LOAD: Load = Load { callers: 20, each: 50, posts: false };
const COMMANDS: usize = 1_000;
const STREAMS: [&str; 4] =
    ["whizbang_commands_bank", "whizbang_commands_transfers", "whizbang_events_bank", "whizbang_events_transfers"];

/// Waits until a part of the commands is answered.
async fn answered(services: &Services, count: usize) {
    services.callers.until("a part of the commands", |callers| callers.answered.get() >= count).await;
}

/// Waits until further commands were answered: the cluster works again.
async fn works_again(services: &Services) -> Duration {
    let (begun, before) = (Instant::now(), services.callers.answered.get());
    let enough = (before + 20).min(COMMANDS);
    services.callers.until("further commands", |callers| callers.answered.get() >= enough).await;
    begun.elapsed()
}

#[test]
fn killed_stream_leader_causes_delays_only() {
    for release in BOTH {
        run(async {
            let mut cluster = NatsCluster::start(release);
            let services = Services::start_at(cluster.url(), REPLICAS).await;
            let operator = cluster.operator().await;
            let killing = async {
                for (round, stream) in (1..).zip(["whizbang_commands_bank", "whizbang_events_bank"]) {
                    answered(&services, COMMANDS * round / 4).await;
                    let mut leader = None;
                    until("a leader", async || {
                        leader = stream_leader(&operator, stream).await;
                        leader.is_some()
                    })
                    .await;
                    let leader = leader.expect("a leader");
                    cluster.kill(leader);
                    println!(
                        "{release:?}: leader of {stream} killed; further commands after {:?}",
                        works_again(&services).await
                    );
                    cluster.restart(leader);
                }
            };
            services.call(LOAD, killing).await;
            assert_eq!(services.callers.answered.get(), COMMANDS);
            for stream in STREAMS {
                until(&format!("the replicas of {stream}"), async || is_replicated(&operator, stream).await).await;
            }
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}

#[test]
fn lost_server_and_lost_quorum_cause_delays_only() {
    for release in BOTH {
        run(async {
            let mut cluster = NatsCluster::start(release);
            let services = Services::start_at(cluster.url(), REPLICAS).await;
            let operator = cluster.operator().await;
            let losing = async {
                answered(&services, COMMANDS / 4).await;
                cluster.kill(0);
                works_again(&services).await;
                answered(&services, COMMANDS / 2).await;
                // The second of three: no stream accepts a message, and no request to JetStream is answered.
                cluster.kill(1);
                let before = services.callers.retries.get();
                services.callers.until("a retry", |callers| callers.retries.get() > before).await;
                cluster.restart(0);
                println!("{release:?}: quorum back; further commands after {:?}", works_again(&services).await);
                cluster.restart(1);
            };
            services.call(LOAD, losing).await;
            assert_eq!(services.callers.answered.get(), COMMANDS);
            for stream in STREAMS {
                until(&format!("the replicas of {stream}"), async || is_replicated(&operator, stream).await).await;
            }
            let verdict = services.verdict().await;
            println!("{release:?}: {verdict}");
            verdict.assert_clean();
        });
    }
}
