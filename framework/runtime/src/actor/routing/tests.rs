//! Decisions of the framework about commands to ended sagas, replies, and discarded dead letters.

use std::rc::Rc;

use super::super::ActorType;
use super::super::live_actor::LiveActor;
use super::super::requested::{TimerSlot, TurnFacts};
use super::super::tests::{START, bank, context, open};
use super::*;
use crate::router::PlannedCommand;
use crate::tests::pots::{Pot, Watch};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Coded as _, Name, Origin, ReplyMode, ShardId, set_expiry};

/// The command of all tests, and the one that undoes it.
const COMMAND: MessageId = MessageId::from_u128(7);
const UNDO: MessageId = MessageId::from_u128(8);

fn name(name: &'static str) -> Name {
    Name::from_static(name).unwrap()
}

/// A dispatcher of the saga `Watch`, or of the aggregate `Pot`, which handles replies to `Work`.
fn dispatcher(is_saga: bool) -> Rc<Dispatcher> {
    let of = if is_saga { ActorType::of::<Watch>() } else { ActorType::of::<Pot>() };
    Dispatcher::new(context(), of, name("pots"), name("watch"), 8)
}

/// Runs a decision of the key `k`, and returns its result and what it requests.
fn decided<T>(dispatcher: &Rc<Dispatcher>, decide: impl FnOnce(&mut dyn AnyEffects) -> T) -> (T, Requests) {
    let mut effects = dispatcher.take_effects();
    let (id, key) = (MessageId::from_u128(1), Rc::from("k"));
    let facts = TurnFacts { id, correlation: id, traceparent: None, headers: Vec::new(), time: START, key };
    effects.requested().begin(facts);
    let result = decide(&mut *effects);
    let requested = effects.requested();
    (result, Requests { changes: requested.compensation.clone(), sent: requested.outgoing.len() })
}

#[derive(Debug, PartialEq)]
struct Requests {
    changes: Vec<CompensationChange>,
    sent: usize,
}

fn changes<const N: usize>(changes: [CompensationChange; N]) -> Requests {
    Requests { changes: changes.into(), sent: 0 }
}

fn begin() -> CompensationChange {
    CompensationChange::Begin { finally: Vec::new() }
}

fn ended() -> KeyState {
    let mut state = KeyState::default();
    state.rare.ended = true;
    state
}

fn state_after<const N: usize>(changes: [CompensationChange; N]) -> KeyState {
    let mut state = KeyState::default();
    changes.iter().for_each(|change| state.apply_compensation(change));
    state
}

fn step() -> CompensationChange {
    let (domain, key, name) = ("pots".to_owned(), "k".to_owned(), "Pass".to_owned());
    let undo = PlannedCommand { domain, shard: 0, key, name, version: 1, codec: 1, payload: Vec::new(), shape: None };
    CompensationChange::Step { command: COMMAND, undo }
}

/// A saga that undoes its step, and waits for the reply to that.
fn undoing() -> KeyState {
    state_after([
        step(),
        CompensationChange::Done { command: COMMAND },
        begin(),
        CompensationChange::Sent { command: UNDO },
    ])
}

/// The reply to a command `name` with the id `command`.
fn reply(to: &'static str, command: MessageId, reply: &Result<(), Rejection>) -> Envelope {
    let mut payload = Vec::new();
    <()>::write_reply(reply, Codec::Bincode, &mut payload).unwrap();
    let envelope = Envelope::new(MessageId::from_u128(9), Kind::Reply, name("pots"), name(to), START);
    Envelope { causation: Some(command), payload: payload.into(), ..envelope }
}

fn rejected() -> Result<(), Rejection> {
    Err(Rejection::expired())
}

#[test]
fn ended_saga_rejects_what_cannot_be_undone() {
    let dispatcher = dispatcher(true);
    type Request = fn(&mut RequestedEffects);
    let event: Request = |effects| effects.record("Watched", 1, 0);
    let rejected_event: Request = |effects| {
        effects.record("Watched", 1, 0);
        effects.rejected = true;
    };
    let cases: [(KeyState, Request, bool); 6] = [
        (KeyState::default(), event, false),
        (ended(), |_| {}, false),
        (ended(), event, true),
        (ended(), |effects| effects.timers.push(TimerSlot::Clear { name: "Tick".into() }), true),
        (ended(), rejected_event, false),
        (ended(), |effects| effects.ended = true, true),
    ];
    for (nth, (state, request, expected)) in cases.into_iter().enumerate() {
        let (late, requests) = decided(&dispatcher, |effects| {
            request(effects.requested());
            dispatcher.is_too_late(&state, None, effects.requested())
        });
        assert_eq!((late, requests.changes), (expected, vec![]), "{nth}");
    }
    let (late, requests) = decided(&dispatcher, |effects| {
        effects.requested().record("Watched", 1, 0);
        effects.requested().restarts = true;
        dispatcher.is_too_late(&ended(), None, effects.requested())
    });
    assert_eq!((late, requests), (false, changes([CompensationChange::Restarted])));
}

#[test]
fn ended_saga_records_events_of_its_own_commands() {
    let dispatcher = dispatcher(true);
    let late = |domain, actor, key: &str, sets_timer| {
        let shard = ShardId::new(name(domain), 0);
        let origin = Origin { shard, actor: name(actor), key: key.to_owned(), sequence: 1, version: 0, store: None };
        let envelope = Envelope::new(COMMAND, Kind::Command, name("pots"), name("Seen"), START);
        let envelope = Envelope { origin: Some(origin), ..envelope };
        decided(&dispatcher, |effects| {
            effects.requested().record("Watched", 1, 0);
            if sets_timer {
                effects.requested().timers.push(TimerSlot::Clear { name: "Tick".into() });
            }
            dispatcher.is_too_late(&ended(), Some(&envelope), effects.requested())
        })
        .0
    };
    assert!(!late("pots", "watch", "k", false) && late("pots", "watch", "k", true));
    assert!(
        late("bank", "watch", "k", false) && late("pots", "pot", "k", false) && late("pots", "watch", "other", false)
    );
}

#[test]
fn requests_are_classified_by_their_kind() {
    let dispatcher = dispatcher(true);
    let classified = |request: fn(&mut RequestedEffects)| {
        decided(&dispatcher, |effects| {
            request(effects.requested());
            (effects.requested().is_reply_only(), effects.requested().is_events_only())
        })
        .0
    };
    assert_eq!(classified(|_| {}), (true, true));
    assert_eq!(classified(|effects| effects.record("Watched", 1, 0)), (false, true));
    assert_eq!(classified(|effects| effects.ended = true), (false, true));
    assert_eq!(classified(|effects| effects.begin_compensation()), (false, false));
    assert_eq!(classified(|effects| effects.timers.push(TimerSlot::Clear { name: "T".into() })), (false, false));
    assert_eq!(classified(|effects| effects.cancel(COMMAND)), (false, false));
}

#[test]
fn discarded_reply_ends_the_wait_of_its_saga() {
    let dispatcher = dispatcher(true);
    let done = CompensationChange::Done { command: COMMAND };
    let rejects = CompensationChange::Rejected { command: COMMAND };
    let unreadable = Envelope { payload: vec![0xff; 3].into(), ..reply("Pass", COMMAND, &Ok(())) };
    let mut ended_with_step = state_after([step()]);
    ended_with_step.rare.ended = true;
    let cases = [
        (undoing(), reply("Pass", UNDO, &Ok(())), changes([CompensationChange::Undone { command: UNDO }]), 0),
        (undoing(), reply("Pass", UNDO, &rejected()), changes([CompensationChange::GivenUp { command: UNDO }]), 1),
        (state_after([step()]), reply("Pass", COMMAND, &Ok(())), changes([done.clone()]), 0),
        (state_after([step()]), unreadable, changes([done]), 0),
        (state_after([step()]), reply("Pass", COMMAND, &rejected()), changes([rejects.clone(), begin()]), 0),
        (state_after([step(), begin()]), reply("Pass", COMMAND, &rejected()), changes([rejects.clone()]), 0),
        (ended_with_step, reply("Pass", COMMAND, &rejected()), changes([rejects.clone()]), 0),
        (state_after([step()]), reply("Pass", UNDO, &rejected()), changes([]), 0),
    ];
    for (nth, (state, envelope, expected, given_up)) in cases.into_iter().enumerate() {
        let before = dispatcher.context.counts.given_up.get();
        let (result, requests) =
            decided(&dispatcher, |effects| dispatcher.discard_message(&state, &envelope, effects.requested()));
        assert!(result.is_ok());
        assert_eq!(requests, expected, "{nth}");
        assert_eq!(dispatcher.context.counts.given_up.get() - before, given_up, "{nth}");
    }
    // The actor handles the rejection of `Work` itself.
    let pots = self::dispatcher(false);
    let envelope = reply("Work", COMMAND, &rejected());
    let state = state_after([step()]);
    let (_, requests) = decided(&pots, |effects| pots.discard_message(&state, &envelope, effects.requested()));
    assert_eq!(requests, changes([rejects]));
}

#[test]
fn discarded_command_is_rejected_to_its_sender() {
    let dispatcher = dispatcher(true);
    let origin = Origin { shard: bank(1), actor: name("pot"), key: "p".into(), sequence: 1, version: 0, store: None };
    let envelope = Envelope::new(COMMAND, Kind::Command, name("pots"), name("Seen"), START);
    let envelope = Envelope { origin: Some(origin), wants: ReplyMode::Rejection, ..envelope };
    for (envelope, sent) in [(envelope.clone(), 1), (Envelope { kind: Kind::Event, ..envelope }, 0)] {
        let (_, requests) = decided(&dispatcher, |effects| {
            dispatcher.discard_message(&KeyState::default(), &envelope, effects.requested())
        });
        assert_eq!(requests, Requests { changes: vec![], sent });
    }
}

/// Decides on a reply to an actor without a state, which user code would need.
fn decide_reply(
    dispatcher: &Rc<Dispatcher>,
    state: &KeyState,
    envelope: &Envelope,
    redriven: bool,
) -> (Result<(), TurnError>, Requests) {
    let shard = open(&dispatcher.context, 0);
    let live: Rc<LiveActor> = (dispatcher.new_live)(Rc::clone(dispatcher), shard, Rc::from("k"));
    let actor = live.actor.borrow();
    decided(dispatcher, |effects| dispatcher.decide_reply(state, &actor.user, envelope, effects, redriven))
}

#[test]
fn reply_to_a_compensating_command_decides_its_step() {
    let dispatcher = dispatcher(true);
    let decide = |reply: &Result<(), Rejection>, redriven| {
        decide_reply(&dispatcher, &undoing(), &self::reply("Pass", UNDO, reply), redriven)
    };
    let (result, requests) = decide(&Ok(()), false);
    assert!(result.is_ok());
    assert_eq!(requests, changes([CompensationChange::Undone { command: UNDO }]));
    let (result, requests) = decide(&rejected(), true);
    assert!(result.is_ok());
    assert_eq!(requests, changes([CompensationChange::Retry { command: UNDO }]), "an operator wants it again");
    let (result, requests) = decide(&rejected(), false);
    assert!(matches!(result, Err(TurnError::Compensation(_))));
    assert_eq!(requests, changes([]));
}

#[test]
fn unhandled_rejection_begins_to_compensate_a_saga() {
    let (saga, aggregate) = (dispatcher(true), dispatcher(false));
    let rejects = CompensationChange::Rejected { command: COMMAND };
    let requests = |dispatcher, state: &KeyState, answer: &Result<(), Rejection>| {
        let (result, requests) = decide_reply(dispatcher, state, &reply("Pass", COMMAND, answer), false);
        assert!(result.is_ok(), "{:?}", result.err().map(|error| error.text()));
        requests
    };
    let with_step = state_after([step()]);
    assert_eq!(requests(&saga, &with_step, &rejected()), changes([rejects.clone(), begin()]));
    assert_eq!(requests(&saga, &with_step, &Ok(())), changes([CompensationChange::Done { command: COMMAND }]));
    assert_eq!(requests(&saga, &KeyState::default(), &rejected()), changes([begin()]), "also without a step");
    assert_eq!(requests(&saga, &KeyState::default(), &Ok(())), changes([]));
    assert_eq!(requests(&saga, &state_after([step(), begin()]), &rejected()), changes([rejects]));
    assert_eq!(requests(&saga, &ended(), &rejected()), changes([]));
    assert_eq!(requests(&aggregate, &KeyState::default(), &rejected()), changes([]));
    // Replies to commands of an earlier run do not concern a restarted saga.
    let mut restarted = state_after([CompensationChange::Restarted]);
    assert_eq!(requests(&saga, &restarted, &rejected()), changes([]));
    restarted.rare.record_sent(COMMAND, Kind::Command, ReplyMode::Reply);
    assert_eq!(requests(&saga, &restarted, &rejected()), changes([begin()]));
}

#[test]
fn ended_saga_ignores_events_and_timers() {
    let dispatcher = dispatcher(true);
    let shard = open(&dispatcher.context, 0);
    // Without a state, every call of user code fails.
    let live: Rc<LiveActor> = (dispatcher.new_live)(Rc::clone(&dispatcher), shard, Rc::from("k"));
    let actor = live.actor.borrow();
    let is_ignored = |state: &KeyState, action: Action, of: &'static str| {
        let envelope = Envelope::new(COMMAND, Kind::Document, name("pots"), name(of), START);
        let (result, requests) =
            decided(&dispatcher, |effects| dispatcher.decide(state, &actor.user, &action, &envelope, effects, false));
        assert_eq!(requests, changes([]));
        result.is_ok()
    };
    for (action, of) in [(Action::React, "Added"), (Action::Timer { turn: 1 }, "Tick")] {
        assert!(!is_ignored(&KeyState::default(), action.clone(), of), "{action:?}");
        assert!(is_ignored(&ended(), action.clone(), of) && is_ignored(&undoing(), action, of));
    }
    assert!(!is_ignored(&ended(), Action::Handle, "Seen"), "a command is answered");
}

#[test]
fn command_expires_behind_its_time() {
    let dispatcher = dispatcher(true);
    let envelope = Envelope::new(COMMAND, Kind::Command, name("pots"), name("Seen"), START);
    let is_rejected = |action: Action, expiry: Option<u64>| {
        let mut envelope = envelope.clone();
        if let Some(expiry) = expiry {
            set_expiry(&mut envelope.headers, Timestamp::from_millis(expiry)).unwrap();
        }
        let (is_over, _) = decided(&dispatcher, |effects| {
            let is_over = dispatcher.reject_expired(&action, &envelope, effects.requested());
            assert_eq!((effects.requested().rejected, effects.requested().expired), (is_over, is_over));
            is_over
        });
        is_over
    };
    let now = START.as_millis();
    assert_eq!([now - 1, now, now + 1].map(|at| is_rejected(Action::Handle, Some(at))), [true, false, false]);
    assert!(!is_rejected(Action::Handle, None) && !is_rejected(Action::React, Some(now - 1)));
}
