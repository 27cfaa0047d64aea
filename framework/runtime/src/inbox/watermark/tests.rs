//! Tests of watermark tracking.

use super::*;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Kind, MessageId, Origin};

/// Actors of one type: the key of each event is that of its stream.
#[derive(Default)]
struct Actors(RefCell<Vec<Delivery>>);

impl ActorEndpoint for Actors {
    fn deliver(&self, delivery: Delivery) {
        self.0.borrow_mut().push(delivery);
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        Ok(event.origin.as_ref().map(|origin| origin.key.clone()))
    }

    fn live_count(&self) -> usize {
        0
    }

    fn passivate_idle(&self, _: u64, _: usize) {}

    fn reset(&self) {}
}

fn tracker(dispatched: u64, stored: u64) -> (Rc<WatermarkTracker>, Rc<Cell<u64>>) {
    let shard = ShardId::new(Name::from_static("bank").unwrap(), 0);
    let last = Rc::new(Cell::new(dispatched));
    (WatermarkTracker::new(Rc::new(Source { shard, kind: SourceKind::Direct }), Rc::clone(&last), stored), last)
}

#[test]
fn watermark_is_below_the_first_open_sequence() {
    let (tracker, last) = tracker(4, 4);
    assert_eq!((tracker.watermark(), tracker.unstored(), tracker.stored()), (4, None, 4));
    for place in 5..=8 {
        last.set(place);
        tracker.mark_dispatched(place);
    }
    assert_eq!((tracker.watermark(), tracker.unstored()), (4, None));
    tracker.mark_known(6);
    assert_eq!((tracker.watermark(), tracker.watermark_after(5), tracker.watermark_after(7)), (4, 6, 4));
    tracker.mark_known(5);
    assert_eq!((tracker.watermark(), tracker.unstored(), tracker.stored()), (6, Some(6), 4));
    tracker.mark_appended(7);
    assert_eq!((tracker.watermark(), tracker.unstored(), tracker.stored()), (7, None, 7));
    // Once the last one is appended, nothing is open.
    assert_eq!(tracker.watermark_after(8), 8);
    tracker.set_stored(3);
    assert_eq!(tracker.stored(), 7, "the stored watermark never falls");
}

#[test]
fn only_sequences_near_the_start_are_suspect() {
    let (tracker, _) = tracker(10, 10);
    assert!(tracker.is_near_start(10 + NEAR_START));
    assert!(!tracker.is_near_start(11 + NEAR_START));
}

#[test]
fn event_below_the_watermark_is_not_redelivered() {
    let name = Name::from_static("bank").unwrap();
    let shard = ShardId::new(name.clone(), 0);
    let actors = Rc::new(Actors::default());
    let dispatched = Rc::new(Cell::new(7));
    let endpoint = Rc::clone(&actors) as Rc<dyn ActorEndpoint>;
    let subscriber =
        ActorSubscriber::new((&name, &name), endpoint, vec![name.clone()], &shard, &dispatched, &[Some(5)]);
    assert_eq!(subscriber.watermark(), 5);
    let done = Rc::new(Cell::new(0));
    for sequence in 4..=6 {
        let origin =
            Origin { shard: shard.clone(), actor: name.clone(), key: "ada".into(), sequence, version: 1, store: None };
        let event =
            Envelope::new(MessageId::from_u128(1), Kind::Event, name.clone(), name.clone(), Timestamp::from_millis(0));
        let counted = Rc::clone(&done);
        subscriber
            .handle(&Envelope { origin: Some(origin), ..event }, Box::new(move || counted.set(counted.get() + 1)));
    }
    assert_eq!((actors.0.borrow().len(), done.get()), (1, 2));
    let delivery = actors.0.borrow_mut().remove(0);
    (delivery.completion)(Outcome::Stopped);
    assert_eq!(done.get(), 3);
    // 6 was not appended, so the stored watermark stays.
    assert!(subscriber.unstored().is_empty());
}
