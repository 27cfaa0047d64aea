//! Callers in their own processes: they share nothing with the node but the server.

use std::process::Command;

use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, deposit};
use crate::services::bridge;
use crate::{BOTH, until};

/// Calls from another process and returns its output.
async fn call(server: &NatsServer, key: &str, account: &str, cents: u64) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caller"));
    command.args([&server.url(), key, account, &cents.to_string()]);
    // The node runs on this thread and must respond during the call.
    let calling = std::thread::spawn(move || command.output().expect("runs"));
    until("the end of a caller", async || calling.is_finished()).await;
    let output = calling.join().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn repeated_key_of_another_process_returns_the_first_reply() {
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let folder = tempfile::tempdir().expect("a folder");
            let start = async |server: &NatsServer| {
                let store = EmbeddedStore::open(folder.path()).expect("opens");
                let node = Node::builder("bank", store).aggregate::<Account>().bridge(bridge(&server.url()).await);
                node.start().await.expect("starts")
            };
            let node = start(&server).await;
            assert_eq!(call(&server, "invoice-1", "ada", 500).await, "500");
            node.client().send(deposit("ada", 11)).await.expect("is handled");
            assert_eq!(call(&server, "invoice-1", "ada", 500).await, "500");
            assert_eq!(call(&server, "invoice-1", "ada", 501).await, "id already used with another payload");
            // Neither the node's memory nor the server's contains the reply.
            node.stop().await.expect("stops");
            server.restart_empty();
            let node = start(&server).await;
            assert_eq!(call(&server, "invoice-1", "ada", 500).await, "500");
            assert_eq!(call(&server, "invoice-2", "ada", 500).await, "1011");
            node.stop().await.expect("stops");
        });
    }
}
