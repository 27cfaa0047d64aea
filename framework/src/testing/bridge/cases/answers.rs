//! Questions and their answers.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::sample::{command, event, outside, shard};
use crate::bridge::{BridgeError, Page, Request, RequestError, Response};
use crate::clock::monotonic;
use crate::message::{Envelope, Fingerprint, Kind};
use crate::testing::bridge::Fixture;
use crate::testing::bridge::node::{NodeBehavior, TestNode, named, service};

/// Commands, queries, events, outbox entries and watermarks are asked for, answered and refused.
pub async fn every_kind_of_question_is_answered(fixture: &dyn Fixture) {
    let answering = |asked: Request| -> BoxFuture<'static, Response> {
        let answer = match asked {
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
        Box::pin(async move { answer })
    };
    let manners = NodeBehavior { answering: Box::new(answering), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank").answering("bank", "Total"), manners).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop")).await;
    let ask = |asked| shop.bridge.request(asked, Duration::from_secs(10));
    let (from, to) = (shard("bank", 3), shard("shop", 1));

    let one = outside(&shard("bank", 1), 1);
    assert_eq!(ask(Request::Command(one.clone())).await.unwrap(), Response::Reply(one.payload.clone()));
    // A caller that does not know the shard.
    let lost = Envelope { to: None, ..one };
    assert_eq!(ask(Request::Command(lost.clone())).await.unwrap(), Response::Reply(lost.payload));
    assert_eq!(
        ask(Request::Command(outside(&shard("bank", 1), 2))).await.unwrap(),
        Response::Refused(RequestError::Busy)
    );
    let query = Envelope { kind: Kind::Query, name: named("Total"), to: None, ..outside(&shard("bank", 0), 1) };
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
        let asked = Request::Shape { from: from.clone(), to, shape };
        assert_eq!(ask(asked).await.unwrap(), Response::Shape(text));
    }
    // The watermark is known to the receiver, here the bank.
    assert_eq!(ask(Request::Watermark { from: to, to: from }).await.unwrap(), Response::watermark(1003));
    shop.look(|seen| assert!(seen.asked.is_empty()));
    bank.stop().await;
    shop.stop().await;
}

/// An answer larger than the broker takes comes shortened; the asker asks on from where it ends.
pub async fn a_long_answer_is_cut_and_continued(fixture: &dyn Fixture) {
    let answering = |asked: Request| -> BoxFuture<'static, Response> {
        let Request::Events { shard, after, .. } = asked else { return Box::pin(async { Response::watermark(0) }) };
        let large = |at| Envelope { payload: vec![7; 300 * 1024].into(), ..event(&shard, at) };
        let answer = Response::envelopes((after + 1..=10).map(large).collect(), 10);
        Box::pin(async move { answer })
    };
    let manners = NodeBehavior { answering: Box::new(answering), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank"), manners).await;
    let mut after = 0;
    while after < 10 {
        let asked = Request::Events { shard: shard("bank", 0), after, limit: 100 };
        let Response::Envelopes(Page { envelopes: events, last: 10, .. }) =
            bank.bridge.request(asked, Duration::from_secs(10)).await.unwrap()
        else {
            panic!("another answer")
        };
        assert!(!events.is_empty(), "no event after {after}");
        for event in events {
            after += 1;
            assert_eq!((event.origin.unwrap().sequence, event.payload.len()), (after, 300 * 1024));
        }
    }
    bank.stop().await;
}

/// Nobody has ever owned the domain: the sender hears it now, not at its deadline.
pub async fn a_domain_that_nobody_owns_is_said_at_once(fixture: &dyn Fixture) {
    let bank = TestNode::start(fixture, service("bank").owning("bank")).await;
    let start = monotonic();
    let nobody = shard("nobody", 0);
    let sent = bank.bridge.send(command(&shard("bank", 0), &nobody, 1)).await;
    assert!(matches!(&sent, Err(BridgeError::NoOwner { domain }) if domain == "nobody"), "{sent:?}");
    for asked in [
        Request::Command(outside(&nobody, 1)),
        Request::Query(Envelope { kind: Kind::Query, ..outside(&nobody, 1) }),
        Request::Events { shard: nobody.clone(), after: 0, limit: 1 },
    ] {
        let answer = bank.bridge.request(asked, Duration::from_secs(30)).await;
        assert!(matches!(&answer, Err(BridgeError::NoOwner { domain }) if domain == "nobody"), "{answer:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
    // Events need no owner and no subscriber.
    bank.bridge.publish(event(&shard("bank", 0), 1)).await.unwrap();
    bank.stop().await;
}

/// The owner is there and silent.
pub async fn an_owner_that_does_not_answer_is_said_at_the_deadline(fixture: &dyn Fixture) {
    let manners = NodeBehavior { answering: Box::new(|_| Box::pin(std::future::pending())), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank"), manners).await;
    let shop = TestNode::start(fixture, service("shop")).await;
    let (start, deadline) = (monotonic(), Duration::from_millis(300));
    let answer = shop.bridge.request(Request::Command(outside(&shard("bank", 0), 1)), deadline).await;
    assert!(matches!(&answer, Err(BridgeError::NoResponse { domain, .. }) if domain == "bank"), "{answer:?}");
    let waited = start.elapsed();
    assert!(waited >= deadline && waited < deadline + Duration::from_secs(5), "{waited:?}");
    bank.until("the question", |seen| seen.asked.len() == 1).await;
    shop.stop().await;
}
