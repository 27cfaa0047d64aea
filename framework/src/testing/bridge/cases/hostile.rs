//! A hostile client beside honest nodes.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};

use super::sample::{command, effects, event, outside, shard};
use crate::bridge::subject::Address;
use crate::bridge::wire::Packet;
use crate::bridge::{Request, Response};
use crate::message::Envelope;
use crate::testing::bridge::hostile::{Forgery, Hostile, Target};
use crate::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use crate::testing::bridge::{Fixture, SHARDS};

/// How much the hostile client writes.
const FORGERIES: usize = 400;
/// How many packets without sense come in a flood.
const FLOOD: usize = 3000;

/// What honest nodes have from each other: the ways and numbers of commands and events, and what was answered.
type Results = (BTreeSet<(String, u64)>, BTreeSet<(String, u64)>, Vec<Response>);

fn target(domain: &'static str) -> Target {
    Target {
        domain: named(domain),
        shards: SHARDS,
        command: named("Do"),
        event: named("Happened"),
        actor: named("Recorder"),
        has_begun: true,
    }
}

/// Sends, records and asks what these numbers stand for, and returns what has come of it.
async fn exchange(bank: &TestNode, shop: &TestNode, numbers: RangeInclusive<u64>) -> Results {
    let before = numbers.start() - 1;
    let count = usize::try_from(numbers.end() - before).unwrap_or(0);
    let mut answers = Vec::new();
    for number in numbers {
        let of = |domain| shard(domain, u16::try_from(number).unwrap_or(0) % SHARDS);
        bank.bridge.send(command(&of("bank"), &shard("shop", 0), number)).await.expect("sends");
        bank.bridge.publish(event(&of("bank"), number)).await.expect("publishes");
        // The same question in every run.
        let asked = Request::Command(outside(&of("bank"), number - before));
        answers.push(shop.bridge.request(asked, Duration::from_secs(20)).await.expect("is answered"));
    }
    let honest = |seen: &[Envelope]| -> BTreeSet<(String, u64)> {
        let honest: Vec<_> = seen.iter().filter(|envelope| !Hostile::is_forged(envelope)).cloned().collect();
        let later = effects(&honest).into_iter().filter(|(_, number)| *number > before);
        later.map(|(way, number)| (way, number - before)).collect()
    };
    shop.until("all that was sent", |seen| honest(&seen.direct).len() == count && honest(&seen.events).len() == count)
        .await;
    let (sent, recorded) = shop.look(|seen| (honest(&seen.direct), honest(&seen.events)));
    (sent, recorded, answers)
}

async fn start(fixture: &dyn Fixture) -> (TestNode, TestNode) {
    let answering = |asked: Request| -> BoxFuture<'static, Response> {
        let Request::Command(envelope) = asked else {
            return Box::pin(async { Response::Watermark { through: 0, store: None } });
        };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let manners = NodeBehavior { answering: Box::new(answering), ..NodeBehavior::default() };
    let bank = TestNode::start_with(fixture, service("bank").owning("bank"), manners).await;
    let shop = TestNode::start(fixture, service("shop").owning("shop").taking("bank")).await;
    (bank, shop)
}

/// While a client writes malformed, contradicting, oversize and untrue packets everywhere, honest nodes get what they get without it.
pub async fn a_hostile_client_changes_nothing_for_others(fixture: &dyn Fixture) {
    let (bank, shop) = start(fixture).await;
    let quiet = exchange(&bank, &shop, 1..=100).await;
    let mut hostile = Hostile::new(11, vec![target("bank"), target("shop")]);
    let attack = async {
        let mut kinds = BTreeSet::new();
        for _ in 0..FORGERIES {
            let forgery = hostile.forge().expect("a forgery");
            kinds.insert(forgery.what);
            fixture.forge(forgery).await;
        }
        kinds
    };
    let (kinds, attacked) = join(attack, exchange(&bank, &shop, 101..=200)).await;
    assert!(kinds.len() > 12, "{kinds:?}");
    assert_eq!(attacked, quiet);
    assert!(fixture.refused().await > 0, "the hostile client was not there");
    bank.stop().await;
    shop.stop().await;
}

/// A flood of packets without sense is put aside beside the messages that come with it and after it.
pub async fn a_flood_of_junk_holds_up_no_message(fixture: &dyn Fixture) {
    let (bank, shop) = start(fixture).await;
    let flood = async {
        for number in 0..FLOOD {
            let to = shard("shop", u16::try_from(number).unwrap_or(0) % SHARDS);
            let packet = Packet { headers: Vec::new(), payload: Bytes::from_static(b"junk") };
            fixture.forge(Forgery { what: "junk", place: Address::Direct { to, from: None }, packet }).await;
        }
    };
    let ((), (sent, recorded, _)) = join(flood, exchange(&bank, &shop, 1..=50)).await;
    assert_eq!((sent.len(), recorded.len()), (50, 50));
    let (sent, ..) = exchange(&bank, &shop, 51..=60).await;
    assert_eq!(sent.len(), 10, "behind the flood");
    assert!(fixture.refused().await > 0, "there was no flood");
    bank.stop().await;
    shop.stop().await;
}
