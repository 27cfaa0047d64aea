//! Redriven dead letters: their action and their mark.

use super::super::ActorType;
use super::super::live_actor::{Dispatcher, LiveActor};
use super::super::tests::{START, context, open};
use super::*;
use crate::tests::pots::{Added, Watch};
use whizbang_core::message::{Message as _, Name, Origin, ShardId};

fn name(name: &'static str) -> Name {
    Name::from_static(name).unwrap()
}

/// The saga that follows a pot.
fn watch() -> Rc<LiveActor> {
    let context = context();
    let shard = open(&context, 0);
    let dispatcher = Dispatcher::new(context, ActorType::of::<Watch>(), name("pots"), name("watch"), 8);
    (dispatcher.new_live)(Rc::clone(&dispatcher), shard, Rc::from("watch-p"))
}

fn envelope(kind: Kind, of: &'static str) -> Envelope {
    Envelope::new(MessageId::from_u128(1), kind, name("pots"), name(of), START)
}

/// An event of the pot `p`.
fn event(of: &'static str) -> Envelope {
    let mut payload = Vec::new();
    Added { nth: 1 }.encode(Codec::Bincode, &mut payload).unwrap();
    let (shard, key) = (ShardId::new(name("pots"), 1), "p".to_owned());
    let origin = Some(Origin { shard, actor: name("pot"), key, sequence: 3, version: 1, store: None });
    Envelope { origin, payload: payload.into(), ..envelope(Kind::Event, of) }
}

#[test]
fn redriven_event_is_handled_by_its_own_key_only() {
    let live = watch();
    let action = |key: &str, envelope: Envelope| {
        let (actor, reason) = (name("watch"), DeadLetterReason::Attempts);
        let (key, error, time) = (key.to_owned(), String::new(), START);
        live.actor.borrow().action_again(&DeadLetter { actor, key, reason, error, attempts: 1, time, envelope })
    };
    assert_eq!(action("watch-p", event("Added")), Action::React);
    let other = Action::DeadLetter("belongs to the key `watch-p`, not to this one".to_owned());
    assert_eq!(action("p", event("Added")), other);
    assert_eq!(action("watch-p", event("Passed")), Action::DeadLetter("is not handled by this actor".to_owned()));
    let unreadable = Envelope { payload: Bytes::new(), ..event("Added") };
    assert!(matches!(action("watch-p", unreadable), Action::DeadLetter(_)));
    assert_eq!(action("watch-p", envelope(Kind::Command, "Seen")), Action::Handle);
    assert_eq!(action("watch-p", envelope(Kind::Reply, "Seen")), Action::Reply);
}

#[test]
fn redriven_command_of_a_caller_is_marked_again() {
    let live = watch();
    let is_marked = |envelope: Envelope| match live.actor.borrow().mark_again(&envelope) {
        DedupMark::MessageId { digest } => {
            assert_eq!(digest, live.actor.borrow().dispatcher.context.digest(&envelope).value());
            true
        }
        _ => false,
    };
    let command = envelope(Kind::Command, "Seen");
    assert!(is_marked(command.clone()));
    assert!(!is_marked(Envelope { origin: event("Added").origin, ..command }), "its sender has a sequence");
    for kind in [Kind::Query, Kind::Event, Kind::Reply, Kind::Document] {
        assert!(!is_marked(envelope(kind, "Seen")), "{kind:?}");
    }
}
