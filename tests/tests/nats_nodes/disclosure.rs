//! The information that other parties get about a node: an error code and an id, no panic texts and no paths; and its log.

use std::time::Duration;

use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang::{Retry, SendError};
use whizbang_tests::nats::{NatsServer, Release};

use crate::bank::{Account, Explode, deposit};
use crate::log_capture::Log;
use crate::services::bridge;
use crate::{BOTH, until};

/// Starts a node on this thread, whose log is captured.
async fn bank(server: &NatsServer) -> Node {
    let retry = Retry { attempts: 1, first: Duration::ZERO, longest: Duration::ZERO };
    let node = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().retry(retry);
    node.bridge(bridge(&server.url()).await).start().await.expect("starts")
}

/// A handler panics with a text. A caller over NATS gets a code and the id under which the owner's log has the text.
#[test]
fn remote_caller_gets_a_code_and_the_log_has_the_text() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let log = Log::listen();
            let node = bank(&server).await;
            let client = Client::connect("cashier", bridge(&server.url()).await).await.expect("connects");
            let id = MessageId::from_u128(0xFEED);
            let error = client.send(Explode { account: "ada".to_owned() }).id(id).await.expect_err("panics");
            let SendError::Failed { reason } = &error else { panic!("{error:?}") };
            assert!(!reason.contains("boom") && reason.contains(&id.to_string()), "{reason}");
            let logged = log.lines();
            assert!(logged.iter().any(|line| line.contains(&id.to_string()) && line.contains("boom")), "{logged:#?}");
            // A caller in the owner's process gets the text.
            let error = node.client().send(Explode { account: "ada".to_owned() }).await.expect_err("panics");
            assert!(matches!(&error, SendError::Failed { reason } if reason.contains("boom")), "{error:?}");
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}

/// The client library logs whole messages at `TRACE`. The filter in docs/running.md keeps all lines of this framework and no
/// payload.
#[test]
fn documented_filter_logs_no_payload() {
    const DOCUMENTED: &str = "trace,async_nats=warn";
    assert!(include_str!("../../../docs/running.md").contains(DOCUMENTED));
    let logged = |filter: &'static str| {
        let mut found = (0, 0);
        run(async {
            let server = NatsServer::start(Release::Pinned);
            let log = Log::listen_to(filter);
            let node = bank(&server).await;
            let client = Client::connect("cashier", bridge(&server.url()).await).await.expect("connects");
            // A deadline, so that the command is sent as an envelope; the number identifies the payload.
            let sent = client.send(deposit("secret-of-ada", 7)).await.expect("is handled");
            assert_eq!(sent, 7);
            client.post_to_broker(deposit("secret-of-ada", 7)).await.expect("is taken");
            until("the second", async || {
                node.client().send(deposit("secret-of-ada", 0)).await.is_ok_and(|sum| sum == 14)
            })
            .await;
            client.disconnect().await;
            node.stop().await.expect("stops");
            // bincode: the length of the text, the text, the number.
            found = (log.says("secret-of-ada\\x07"), log.says("whizbang"));
        });
        found
    };
    let (payloads, _) = logged("trace");
    assert!(payloads > 0, "no payload without the filter: it is not needed");
    let (payloads, own) = logged(DOCUMENTED);
    assert!(payloads == 0 && own > 0, "{payloads} payloads, {own} lines of its own");
}
