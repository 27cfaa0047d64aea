//! Snapshots of live actors: an activation reads the end of its stream and not all of it.
//!
//! Called after each turn. A snapshot is a cache: a failure here changes no outcome, and the log is complete without
//! it.

use super::live_actor::ActorInstance;
use super::snapshot_policy::Snapshots;
use whizbang_core::telemetry::{TARGET, shortened};
use whizbang_core::user_code::user_code;

/// An activation of a type without snapshots that reads more turns is logged once.
const LONG_ACTIVATION: u64 = 10_000;

/// The use of a snapshot by an activation.
pub(super) enum Restore {
    /// There was none, or it has another schema.
    Unused,
    Used,
    /// It could not be restored.
    Failed(String),
}

impl ActorInstance {
    /// Saves a snapshot if one is due. The turn is appended already.
    pub(super) fn save_due_snapshot(&mut self) {
        if self.state.turns < self.state.snapshot_due || !self.state.rare.fits_snapshot() {
            return;
        }
        let dispatcher = std::rc::Rc::clone(&self.dispatcher);
        let Some(policy) = &dispatcher.handlers.snapshots else { return };
        let bytes =
            match dispatcher.context.user_code.call(dispatcher.label, || self.state.save(self.user.user(), policy)) {
                Ok(Some(Ok(snapshot))) => {
                    let bytes = snapshot.bytes.len();
                    // The turn is appended, so its caller must get the reply even if the store panics.
                    match user_code(|| {
                        self.shard.writer.borrow_mut().save_snapshot(&dispatcher.actor, &self.key, snapshot);
                    }) {
                        Ok(()) if dispatcher.skips_snapshots.replace(false) => {
                            dispatcher.context.settings.issues.clear_note(&dispatcher.snapshots_name());
                            bytes
                        }
                        Ok(()) => bytes,
                        Err(panicked) => self.skip_snapshot(&panicked.to_string()),
                    }
                }
                Ok(None) => 0,
                Ok(Some(Err(error))) => self.skip_snapshot(&error.to_string()),
                Err(panicked) => self.skip_snapshot(&panicked.to_string()),
            };
        self.state.snapshot_due = policy.next(self.state.turns, bytes);
    }

    /// Counts a skipped snapshot. The first of the actor type is logged, and a health note remains until one is saved:
    /// each activation reads more of the log in between. Returns its size, 0 bytes.
    fn skip_snapshot(&self, error: &str) -> usize {
        let dispatcher = &self.dispatcher;
        dispatcher.context.counts.snapshots_skipped.one();
        if !dispatcher.skips_snapshots.replace(true) {
            let (actor, key) = (&dispatcher.actor, &self.key);
            tracing::error!(
                target: TARGET, %actor, %key, error,
                "snapshot skipped: the state cannot be saved; change its type, or declare `snapshot(never)`",
            );
            let reason = format!("{} are skipped: the state of `{key}` {error}", dispatcher.snapshots_name());
            dispatcher.context.settings.issues.note(&dispatcher.snapshots_name(), reason);
        }
        0
    }

    /// Reports whether the snapshot of this key was restored. One that was not is counted, and a health note remains until one of
    /// the key is: the actor was activated from its whole stream.
    pub(super) fn report_restore(&self, restore: &Restore) {
        let Self { dispatcher, key, .. } = self;
        match restore {
            Restore::Unused => {}
            Restore::Used => {
                if dispatcher.unrestored.borrow_mut().take_if(|unrestored| unrestored == key).is_some() {
                    dispatcher.context.settings.issues.clear_note(&dispatcher.restore_name());
                }
            }
            Restore::Failed(error) => {
                dispatcher.context.counts.states_unrestored.one();
                let mut unrestored = dispatcher.unrestored.borrow_mut();
                if unrestored.is_none() {
                    let (actor, name) = (&dispatcher.actor, dispatcher.snapshots_name());
                    tracing::error!(target: TARGET, %actor, %key, error, "snapshot not restored; the whole stream was read");
                    let reason = format!("{name} are not restored: that of `{}`: {error}", key.escape_debug());
                    dispatcher.context.settings.issues.note(&dispatcher.restore_name(), shortened(reason));
                    *unrestored = Some(std::rc::Rc::clone(key));
                }
            }
        }
    }

    /// Logs a long activation that a snapshot would have shortened.
    pub(super) fn report_long_activation(&self) {
        let (dispatcher, turns) = (&self.dispatcher, self.state.turns);
        if turns > LONG_ACTIVATION
            && dispatcher.handlers.state.snapshots == Snapshots::IfCoded
            && dispatcher.handlers.snapshots.is_none()
            && !dispatcher.skips_snapshots.replace(true)
        {
            let (actor, key) = (&dispatcher.actor, &self.key);
            tracing::warn!(
                target: TARGET, %actor, %key, turns,
                "long stream read to activate an actor: derive `Serialize` and `Deserialize` for the state, to keep snapshots",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::ActorType;
    use super::super::live_actor::Dispatcher;
    use super::super::tests::{context, open};
    use super::*;
    use crate::tests::Account;
    use whizbang_core::message::Name;

    #[test]
    fn long_activation_is_reported_beyond_its_limit() {
        for (turns, is_reported) in [(0, false), (LONG_ACTIVATION, false), (LONG_ACTIVATION + 1, true)] {
            let context = context();
            let shard = open(&context, 0);
            let name = |name| Name::from_static(name).unwrap();
            // Its state has no coding, so it keeps no snapshots.
            let dispatcher = Dispatcher::new(context, ActorType::of::<Account>(), name("bank"), name("account"), 2);
            let live = (dispatcher.new_live)(Rc::clone(&dispatcher), shard, Rc::from("a"));
            live.actor.borrow_mut().state.turns = turns;
            live.actor.borrow().report_long_activation();
            assert_eq!(dispatcher.skips_snapshots.get(), is_reported, "{turns}");
        }
    }
}
