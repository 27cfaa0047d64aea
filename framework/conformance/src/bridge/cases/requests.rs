//! Requests and responses.
//!
//! A request is answered once, or its caller gets an error; nothing is stored for it. The deadline of a request is that of
//! its caller, measured from the call.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::sample::{command, event, external_command, shard};
use crate::bridge::node::{NodeBehavior, TestNode, named, service};
use crate::bridge::{Fixture, SHARDS};
use whizbang_core::bridge::{BridgeError, Page, Request, RequestError, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Envelope, Fingerprint, Kind};

/// Commands, queries, events, outbox entries and watermarks are requested, answered and refused.
///
/// A kind that a bridge does not know would look like an owner that is down, and only at the deadline.
pub async fn every_kind_of_request_gets_a_response(fixture: &dyn Fixture) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let response = match request {
            Request::Command(envelope) if envelope.payload == 2u64.to_be_bytes().as_slice() => {
                Response::Refused(RequestError::Busy)
            }
            Request::Command(envelope) => Response::Reply(envelope.payload),
            Request::Query(envelope) => {
                Response::Refused(RequestError::Unhandled(format!("{} of {}", envelope.name, envelope.domain)))
            }
            Request::Events { shard, after, limit } => {
                Response::envelopes((1..=u64::from(limit)).map(|at| event(&shard, after + at)).collect(), 1000)
            }
            Request::Outbox { from, to, after, limit } => {
                Response::envelopes((1..=u64::from(limit)).map(|at| command(&from, &to, after + at)).collect(), 2000)
            }
            Request::Watermark { from, to } => Response::watermark(u64::from(from.shard) * 1000 + u64::from(to.shard)),
            Request::Sent { through, .. } => Response::watermark(through - 1),
            Request::Shape { from, to, shape } => Response::Shape(format!("{from} {to:?} {shape}")),
        };
        Box::pin(async move { response })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let bank = TestNode::start_with(
        fixture,
        service("bank").owning(named("bank"), SHARDS).answering(named("bank"), named("Total")),
        behavior,
    )
    .await;
    let shop = TestNode::start(fixture, service("shop").owning(named("shop"), SHARDS)).await;
    let ask = |request| shop.bridge.request(request, Duration::from_secs(10));
    let (from, to) = (shard("bank", 3), shard("shop", 1));

    let one = external_command(&shard("bank", 1), 1);
    assert_eq!(ask(Request::Command(one.clone())).await.unwrap(), Response::Reply(one.payload.clone()));
    // The caller does not know the shard.
    let without_shard = Envelope { to: None, ..one };
    let reply = Response::Reply(without_shard.payload.clone());
    assert_eq!(ask(Request::Command(without_shard)).await.unwrap(), reply);
    assert_eq!(
        ask(Request::Command(external_command(&shard("bank", 1), 2))).await.unwrap(),
        Response::Refused(RequestError::Busy)
    );
    let query =
        Envelope { kind: Kind::Query, name: named("Total"), to: None, ..external_command(&shard("bank", 0), 1) };
    assert_eq!(
        ask(Request::Query(query)).await.unwrap(),
        Response::Refused(RequestError::Unhandled("Total of bank".to_owned()))
    );
    assert_eq!(
        ask(Request::Events { shard: from.clone(), after: 7, limit: 3 }).await.unwrap(),
        Response::envelopes((8..=10).map(|at| event(&from, at)).collect(), 1000)
    );
    assert_eq!(
        ask(Request::Outbox { from: from.clone(), to: to.clone(), after: 0, limit: 2 }).await.unwrap(),
        Response::envelopes((1..=2).map(|at| command(&from, &to, at)).collect(), 2000)
    );
    let shape = Fingerprint::from_u64(7);
    for to in [None, Some(to.clone())] {
        let text = format!("{from} {to:?} {shape}");
        let request = Request::Shape { from: from.clone(), to, shape };
        assert_eq!(ask(request).await.unwrap(), Response::Shape(text));
    }
    // The receiver, here the bank, knows the watermark.
    assert_eq!(ask(Request::Watermark { from: to, to: from }).await.unwrap(), Response::watermark(1003));
    shop.inspect(|received| assert!(received.requests.is_empty()));
    bank.stop().await;
    shop.stop().await;
}

/// A response that exceeds the broker's limit is truncated; the caller requests the rest.
///
/// Pages of events may be larger than the broker's limit for one message.
pub async fn long_response_is_truncated_and_continued(fixture: &dyn Fixture) {
    let responder = |request: Request| -> BoxFuture<'static, Response> {
        let Request::Events { shard, after, .. } = request else { return Box::pin(async { Response::watermark(0) }) };
        let large = |at| Envelope { payload: vec![7; 300 * 1024].into(), ..event(&shard, at) };
        let response = Response::envelopes((after + 1..=10).map(large).collect(), 10);
        Box::pin(async move { response })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning(named("bank"), SHARDS), behavior).await;
    let mut after = 0;
    while after < 10 {
        let request = Request::Events { shard: shard("bank", 0), after, limit: 100 };
        let Response::Envelopes(Page { envelopes: events, last: 10, .. }) =
            bank.bridge.request(request, Duration::from_secs(10)).await.unwrap()
        else {
            panic!("another response")
        };
        assert!(!events.is_empty(), "no event after {after}");
        for event in events {
            after += 1;
            assert_eq!((event.origin.unwrap().sequence, event.payload.len()), (after, 300 * 1024));
        }
    }
    bank.stop().await;
}

/// The domain has no owner: the sender gets the error immediately and not at its deadline.
///
/// It is usually a wrong name or a service that is not deployed yet, and should not look like a slow one.
pub async fn unowned_domain_is_reported_immediately(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning(named("bank"), SHARDS)).await;
    let start = monotonic();
    let unowned = shard("ghost", 0);
    let sent = bank.bridge.send(command(&shard("bank", 0), &unowned, 1)).await;
    assert!(matches!(&sent, Err(BridgeError::NoOwner { domain }) if domain == "ghost"), "{sent:?}");
    for request in [
        Request::Command(external_command(&unowned, 1)),
        Request::Query(Envelope { kind: Kind::Query, ..external_command(&unowned, 1) }),
        Request::Events { shard: unowned.clone(), after: 0, limit: 1 },
    ] {
        let response = bank.bridge.request(request, Duration::from_secs(30)).await;
        assert!(matches!(&response, Err(BridgeError::NoOwner { domain }) if domain == "ghost"), "{response:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
    // Events need neither an owner nor a subscriber.
    bank.bridge.publish(event(&shard("bank", 0), 1)).await.unwrap();
    bank.stop().await;
}

/// The owner exists and does not respond.
///
/// The outcome is unknown then: the owner may have handled the command.
pub async fn silent_owner_is_reported_at_the_deadline(fixture: &dyn Fixture) {
    let behavior =
        NodeBehavior { responder: Box::new(|_| Box::pin(std::future::pending())), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning(named("bank"), SHARDS), behavior).await;
    let shop = TestNode::start(fixture, service("shop")).await;
    let (start, deadline) = (monotonic(), Duration::from_millis(300));
    let response = shop.bridge.request(Request::Command(external_command(&shard("bank", 0), 1)), deadline).await;
    assert!(matches!(&response, Err(BridgeError::NoResponse { domain, .. }) if domain == "bank"), "{response:?}");
    let waited = start.elapsed();
    assert!(waited >= deadline && waited < deadline + Duration::from_secs(5), "{waited:?}");
    bank.wait_until("the request", |received| received.requests.len() == 1).await;
    shop.stop().await;
}
