//! The conditions of inline turns.

use super::super::ActorType;
use super::super::live_actor::{Dispatcher, LiveActor};
use super::super::tests::{START, context, open};
use super::*;
use crate::tests::Account;
use whizbang_core::message::{MessageId, set_expiry};
use whizbang_core::store::StoreError;

fn account() -> Rc<LiveActor> {
    let context = context();
    let shard = open(&context, 0);
    let name = |name| Name::from_static(name).unwrap();
    let dispatcher = Dispatcher::new(context, ActorType::of::<Account>(), name("bank"), name("account"), 2);
    (dispatcher.new_live)(Rc::clone(&dispatcher), shard, Rc::from("a"))
}

#[test]
fn actor_with_anything_to_recover_runs_no_inline_turn() {
    let changes: [fn(&mut ActorInstance); 8] = [
        |actor| actor.holds = 1,
        |actor| actor.back_off = Some(Box::default()),
        |actor| actor.load_error = Some(Box::new(StoreError::Closed)),
        |actor| actor.state.rare.parked = vec![MessageId::from_u128(1)].into(),
        |actor| actor.shard.begin_moving(),
        |actor| actor.shard.begin_reopening(),
        |actor| actor.generation += 1,
        |actor| actor.dispatcher.context.stopped.set(true),
    ];
    assert!(account().actor.borrow().may_run_inline(None));
    for (nth, change) in changes.into_iter().enumerate() {
        let live = account();
        change(&mut live.actor.borrow_mut());
        assert!(!live.actor.borrow().may_run_inline(None), "{nth}");
    }
}

#[test]
fn command_with_an_id_or_an_expiry_is_queued() {
    let live = account();
    let is_inline = |meta: CommandMeta| live.actor.borrow().may_run_inline(Some(&meta));
    assert!(is_inline(CommandMeta::default()));
    assert!(!is_inline(CommandMeta { id: Some(MessageId::from_u128(1)), ..CommandMeta::default() }));
    let mut headers = Vec::new();
    set_expiry(&mut headers, START).unwrap();
    assert!(!is_inline(CommandMeta { headers, ..CommandMeta::default() }));
}

#[test]
fn actor_is_unavailable_while_it_is_stopped_or_not_loaded() {
    let live = account();
    let mut actor = live.actor.borrow_mut();
    assert!(actor.unavailable().is_none() && !actor.is_stopped());
    actor.load_error = Some(Box::new(StoreError::Full { at: "disk".to_owned() }));
    assert!(matches!(actor.unavailable(), Some(StoreError::Full { .. })) && !actor.is_stopped());
    actor.shard.lose();
    assert!(matches!(actor.unavailable(), Some(StoreError::Closed)) && actor.is_stopped());
}
