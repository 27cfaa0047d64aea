//! Real nodes over real nats-servers: the server is killed, paused, emptied or away, and the checker looks at what became of it.
//!
//! Everything of a test runs on one thread in real time, but the server, and the callers that are processes of their own.

mod adversary;
#[path = "../../../framework/tests/bank/mod.rs"]
mod bank;
mod callers;
mod claims;
#[path = "../../../framework/tests/drift/contracts.rs"]
mod contracts;
mod diary;
mod drift;
mod forgery;
mod hostile;
mod leaving;
mod log;
mod outage;
mod peers;
mod processes;
mod republish;
mod starting;
mod strangers;
mod town;
mod troubles;

use std::time::Duration;

use whizbang_tests::nats::Release;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

/// Lets the runtime work until `holds`, or for a minute: then the test fails.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            a_moment().await;
        }
    };
    let limit = Duration::from_secs(60);
    assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{what}: not within {limit:?}");
}

/// The time between two looks at what cannot wake its waiter.
pub(crate) async fn a_moment() {
    #[expect(clippy::disallowed_methods, reason = "the interval of a poll: what is looked at notifies no one")]
    tokio::time::sleep(Duration::from_millis(10)).await;
}
