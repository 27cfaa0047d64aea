//! Servers that a node cannot start with: each failure is a typed error that names the server, within a time limit.

use std::time::Duration;

use tokio::time::Instant;
use whizbang::StartError;
use whizbang::bridge::BridgeError;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{Certificates, NatsConfig, NatsServer, Release};

use crate::BOTH;
use crate::bank::Account;

/// Runs a node as a program does, with its error.
async fn service(builder: NatsBuilder) -> Result<(), whizbang::Error> {
    let bridge = builder.connect().await?;
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(bridge).start().await?;
    node.stop().await
}

/// Starts a node with a bridge that was created before the fault.
async fn start(bridge: NatsBridge) -> StartError {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(bridge);
    let begun = Instant::now();
    let error = node.start().await.map(drop).expect_err("cannot start");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    error
}

#[test]
fn start_failures_are_typed_errors_of_the_program() {
    for release in BOTH {
        run(async {
            let port = NatsServer::start(release).port();
            let error = service(NatsBridge::builder(&format!("nats://127.0.0.1:{port}"))).await.expect_err("no server");
            let address = format!("127.0.0.1:{port}");
            assert!(
                matches!(&error, whizbang::Error::Bridge(BridgeError::Unreachable { broker, .. }) if broker.contains(&address)),
                "{error:?}"
            );

            let server = NatsServer::start_with(release, NatsConfig::authorization("user: ada\npassword: lovelace"));
            service(NatsBridge::builder(&server.url()).user("ada", "lovelace")).await.expect("the right one starts");
            let error =
                service(NatsBridge::builder(&server.url()).user("ada", "hunter2")).await.expect_err("a wrong one");
            assert!(matches!(&error, whizbang::Error::Bridge(BridgeError::Refused { .. })), "{error:?}");
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");

            let (ours, strangers) = (Certificates::generate(), Certificates::generate());
            let server = NatsServer::start_with(release, NatsConfig::tls(&ours));
            service(NatsBridge::builder(&server.url()).root_certificate(ours.authority())).await.expect("ours starts");
            let stranger = NatsBridge::builder(&server.url()).root_certificate(strangers.authority());
            let error = service(stranger).await.expect_err("a stranger");
            assert!(
                matches!(&error, whizbang::Error::Bridge(BridgeError::Refused { reason, .. }) if reason.contains("certificate")),
                "{error:?}"
            );
        });
    }
}

#[test]
fn server_fault_between_connect_and_start_is_reported() {
    for release in BOTH {
        run(async {
            let mut server =
                NatsServer::start_with(release, NatsConfig::authorization("user: ada\npassword: lovelace"));
            let connect = async |server: &NatsServer| {
                NatsBridge::builder(&server.url()).user("ada", "lovelace").connect().await.expect("connects")
            };
            let bridge = connect(&server).await;
            server.kill();
            let error = start(bridge).await;
            assert!(matches!(&error, StartError::Bridge(BridgeError::Unreachable { .. })), "{error:?}");
            server.restart();

            let bridge = connect(&server).await;
            server.pause();
            let error = start(bridge).await;
            assert!(matches!(&error, StartError::Bridge(BridgeError::Unreachable { .. })), "{error:?}");
            server.resume();

            let bridge = connect(&server).await;
            server.restart_with(NatsConfig::authorization("user: ada\npassword: changed"));
            let error = start(bridge).await;
            assert!(matches!(&error, StartError::Bridge(BridgeError::Refused { .. })), "{error:?}");
        });
    }
}

#[test]
fn server_death_during_start_is_reported_and_retry_works() {
    // A different moment each time, from before the first request to after the last.
    let mut failed = 0;
    for steps in [1, 20, 60, 120, 200, 300] {
        run(async {
            let mut server = NatsServer::start(Release::Pinned);
            let store = MemoryStore::new();
            let builder = || Node::builder("bank", store.clone()).aggregate::<Account>();
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let mut starting = std::pin::pin!(builder().bridge(bridge).start());
            let mut begun = None;
            for _ in 0..steps {
                tokio::select! {
                    biased;
                    started = &mut starting => {
                        begun = Some(started);
                        break;
                    }
                    () = tokio::task::yield_now() => {}
                }
            }
            server.kill();
            let limit = Duration::from_secs(40);
            let started = match begun {
                Some(started) => started,
                None => tokio::time::timeout(limit, starting).await.expect("the start ends in time"),
            };
            match started {
                Err(StartError::Bridge(error)) => {
                    failed += 1;
                    assert!(error.is_transient(), "{error:?}");
                }
                Err(error) => panic!("{error:?}"),
                Ok(node) => drop(node),
            }
            server.restart();
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let node = builder().bridge(bridge).start().await.expect("starts after the restart");
            node.stop().await.expect("stops");
        });
    }
    assert!(failed > 0, "no server was killed during a start");
}
