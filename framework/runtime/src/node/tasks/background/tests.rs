//! Shards that are reopened after a panic outside of user code.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::node::Node;
use crate::router::Outcome;
use crate::tests::{Account, Bank, Deposit};
use whizbang_core::bridge::AckOutcome;
use whizbang_core::message::{Coded as _, Domain as _, Envelope, Kind, MessageId, Name, Origin, ShardId, shard_of};
use whizbang_log::memory::MemoryStore;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A deposit of one cent to `ada`: of an actor with this sequence, or of a caller.
fn deposit(sequence: Option<u64>, shards: u16) -> Envelope {
    let (bank, other) = (name("bank"), name("other"));
    let mut payload = Vec::new();
    Deposit { account: "ada".to_owned(), cents: 1 }.write(Bank::CODEC, &mut payload).unwrap();
    let shard = ShardId::new(other.clone(), 0);
    let origin = |sequence| Origin { shard, actor: other, key: "k".to_owned(), sequence, version: 0, store: None };
    let id = MessageId::from_u128(u128::from(sequence.unwrap_or(1000)));
    Envelope {
        to: Some(ShardId::new(bank.clone(), shard_of("ada", shards))),
        key: "ada".to_owned(),
        origin: sequence.map(origin),
        codec: Bank::CODEC,
        payload: Bytes::from(payload),
        ..Envelope::new(id, Kind::Command, bank, name("Deposit"), whizbang_core::clock::Timestamp::from_millis(0))
    }
}

async fn until(holds: impl AsyncFn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "the condition did not hold in time");
        tokio::task::yield_now().await;
    }
}

#[test]
fn actor_whose_context_panicked_is_replaced() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await.unwrap();
        let (sent, outcome) = oneshot::channel();
        node.threads.run(
            0,
            Box::new(move |runtime| {
                let shards = u16::try_from(runtime.shards().len()).unwrap();
                // Called by the mailbox after the turn: no user code, so nothing catches it.
                let panics = |_: Outcome| panic!("planned: a completion panics");
                runtime.deliver_external(deposit(None, shards), Box::new(panics));
                // It waits in the mailbox of the actor that panics.
                let settle = move |outcome| drop(sent.send(outcome));
                runtime.direct(deposit(Some(1), shards), Box::new(settle));
            }),
        );
        drop(outcome.await);
        until(async || node.metrics().failed_tasks == 1).await;
        // The shard is reopened, so its sender can send the message again.
        until(async || {
            let (sent, outcome) = oneshot::channel();
            node.threads.run(
                0,
                Box::new(move |runtime| {
                    let shards = u16::try_from(runtime.shards().len()).unwrap();
                    let settle = move |outcome| drop(sent.send(outcome));
                    runtime.direct(deposit(Some(1), shards), Box::new(settle));
                }),
            );
            outcome.await == Ok(AckOutcome::Ack)
        })
        .await;
        let cents = node.client().send(Deposit { account: "ada".to_owned(), cents: 1 }).await.unwrap();
        assert_eq!(cents, 3, "each deposit counts once");
        until(async || !node.health().reasons.iter().any(|reason| reason.contains("live actor"))).await;
        assert_eq!(node.metrics().failed_tasks, 1);
        node.stop().await.unwrap();
    });
}
