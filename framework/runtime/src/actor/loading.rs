//! Activation of a live actor: reads the stream of its key and rebuilds the state from a snapshot and the turns after it.
//!
//! Called when a message arrives for a key that is not loaded, and after a failed append. The [instance](super::instance) holds
//! its mailbox until it is done. If the key cannot be loaded, messages with a sequence wait in the log and all others are answered with
//! the error; the next message loads again.

use std::rc::Rc;

use super::live_actor::{ActorInstance, Ctx, Delivered, Dispatcher};
use super::snapshots::Restore;
use super::state::KeyState;
use crate::router::{DedupKey, Outcome};
use whizbang_core::message::CodecError;
use whizbang_core::store::{StoreError, StreamPages};
use whizbang_core::telemetry::{TARGET, error_chain};
use whizbang_core::user_code::Panicked;

impl ActorInstance {
    /// Holds the mailbox, waits until every append is durable, reads the stream and rebuilds the state; then calls `then`.
    pub(crate) fn load(&mut self, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx) + 'static) {
        let committed = self.all_committed();
        let (reader, dispatcher, key) = (self.shard.reader(), Rc::clone(&self.dispatcher), Rc::clone(&self.key));
        let loading = async move {
            committed.await?;
            let pages = reader.pages(&dispatcher.actor, &key, true).await?;
            let schema = pages.snapshot().map(|snapshot| snapshot.schema);
            let is_current = dispatcher.handlers.snapshots.as_ref().map(|policy| policy.schema) == schema;
            match rebuild(&dispatcher, pages).await {
                Err(StoreError::Codec(error)) if schema.is_some() => {
                    // A snapshot is a cache; the log is complete without it.
                    tracing::warn!(target: TARGET, actor = %dispatcher.actor, "snapshot unusable; the whole stream is read");
                    let state = rebuild(&dispatcher, reader.pages(&dispatcher.actor, &key, false).await?).await?;
                    // One of another schema is expected after an upgrade.
                    Ok((
                        state,
                        if is_current { Restore::Failed(error_chain(&error).to_string()) } else { Restore::Unused },
                    ))
                }
                rebuilt => rebuilt.map(|state| (state, if schema.is_some() { Restore::Used } else { Restore::Unused })),
            }
        };
        let context = Rc::clone(&self.dispatcher.context);
        let loading = async move { context.call_store("load a key", loading).await };
        self.hold(ctx, loading, |this, loaded, ctx| match loaded {
            Ok((mut state, restore)) => {
                this.report_restore(&restore);
                let user = state.user.take();
                this.state = state;
                // The old state is dropped: user code.
                let _ = this.dispatcher.context.user_code.call(this.dispatcher.label, || this.user.put(user));
                this.load_error = None;
                this.report_long_activation();
                if let Some(backlog) = this.backlog() {
                    backlog.loaded(&this.key);
                }
                then(this, ctx);
            }
            Err(error) => this.fail_to_load(error, ctx, then),
        });
    }

    /// Stores the error; the next message loads again.
    fn fail_to_load(&mut self, error: StoreError, ctx: &mut Ctx, then: impl FnOnce(&mut Self, &mut Ctx)) {
        if let Some(backlog) = self.backlog().filter(|_| !self.is_stopped()) {
            backlog.failed_to_load(&self.key, &error);
        }
        self.load_error = Some(Box::new(error));
        then(self, ctx);
    }

    /// Loads the state before handling a message that arrived while it was not loaded.
    pub(super) fn handle_after_load(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        self.load_error = None;
        self.load(ctx, move |this, ctx| match this.load_error.as_deref().cloned() {
            None => this.handle_in_order(delivered, true, ctx),
            Some(error) => this.handle_unloadable(delivered, error, ctx),
        });
    }

    /// Handles a message whose key cannot be loaded.
    pub(super) fn handle_unloadable(&mut self, delivered: Delivered, error: StoreError, ctx: &mut Ctx) {
        let Delivered { delivery, permit } = delivered;
        if self.is_stopped() {
            drop(permit);
            return (delivery.completion)(self.shard.stopped_outcome());
        }
        // A message with a sequence becomes a duplicate once a later one of its source is handled. It must be handled before
        // anything else of this key, however long that takes, so it waits in the log. All others are answered with the error.
        let (DedupKey::Sequence { .. }, Some(backlog)) = (&delivery.dedup_key, self.backlog()) else {
            drop(permit);
            return (delivery.completion)(Outcome::Refused(error));
        };
        let kept = backlog.defer_unloadable(&self.key, delivery, permit, &error);
        self.settle_deferral(kept, ctx);
    }
}

/// The number of turns that are applied before other actors of the thread run.
const REPLAY_SLICE: usize = 64;

/// Rebuilds the state from the turns of a stream, page by page.
async fn rebuild(dispatcher: &Dispatcher, mut pages: Box<dyn StreamPages>) -> Result<KeyState, StoreError> {
    let (code, label) = (&dispatcher.context.user_code, dispatcher.label);
    let panicked = |panicked: Panicked| {
        StoreError::from(CodecError::Decode { reason: format!("rebuilding the state {panicked}") })
    };
    let mut state =
        code.call(label, || KeyState::initial(&dispatcher.handlers, pages.snapshot())).map_err(panicked)??;
    loop {
        let page = pages.next().await?;
        if page.is_empty() {
            return Ok(state);
        }
        for (nth, slice) in page.chunks(REPLAY_SLICE).enumerate() {
            if nth > 0 {
                tokio::task::yield_now().await;
            }
            let applied = code.call(label, || state.replay_all(&dispatcher.handlers, slice)).map_err(panicked);
            if let Err(error) = applied.and_then(|applied| applied.map_err(StoreError::from)) {
                let _ = code.call(label, move || drop(state));
                return Err(error);
            }
        }
    }
}
