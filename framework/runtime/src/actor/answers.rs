//! Queries that a live actor answers from its committed state.
//!
//! Called by the [mailbox](super::mailbox) through [`ActorInstance::handle`]; projections share the trait and the encoding of
//! answers. Calls user code. It never appends: an answer is not a turn.
//!
//! Why an answer may wait: the state in memory contains turns that are appended and not yet committed. An answer that shows
//! one of them could be false later, because the commit may fail. So it leaves after the last append of its actor is durable,
//! as the reply to a duplicate does. It need not wait for later turns.

use std::rc::Rc;

use bytes::Bytes;

use super::actor_type::typed_state_ref;
use super::live_actor::{ActorInstance, Ctx, Delivered};
use super::plan::{Plan, Stateful};
use super::query_context::QueryContext;
use super::unanswered::Unanswered;
use crate::router::Outcome;
use whizbang_core::message::{Coded, Envelope, Message, Query};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;

/// Answers a query: a projection from its view, an aggregate or a saga from the committed state of the key.
///
/// [`Projection`](crate::Projection) has the complete program of a view. An actor lists the query in `answers(…)`, and the
/// query marks the key with `#[key]`:
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit, Deposited};
/// use whizbang::prelude::*;
/// # #[derive(Command, Serialize, Deserialize)]
/// # #[command(domain = Bank)]
/// # struct Save {
/// #     #[key]
/// #     account: String,
/// #     cents: u64,
/// # }
///
/// #[derive(Query, Serialize, Deserialize)]
/// #[query(domain = Bank, reply = u64)]
/// struct SavingsOf {
///     #[key]
///     account: String,
/// }
///
/// #[derive(Aggregate, Default)]
/// #[aggregate(domain = Bank, handles(Save), applies(Deposited), answers(SavingsOf))]
/// struct Savings {
///     cents: u64,
/// }
///
/// impl Answer<SavingsOf> for Savings {
///     fn answer(&self, _query: SavingsOf) -> u64 {
///         self.cents
///     }
/// }
/// # impl Handle<Save> for Savings {
/// #     fn handle(&self, save: Save, effects: &mut Effects<Self>) -> Result<(), Rejection> {
/// #         effects.record(Deposited { cents: save.cents });
/// #         Ok(())
/// #     }
/// # }
/// # impl Apply<Deposited> for Savings {
/// #     fn apply(&mut self, deposited: &Deposited) {
/// #         self.cents += deposited.cents;
/// #     }
/// # }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Savings>().start().await?;
/// node.client().send(Save { account: "ada".into(), cents: 500 }).await?;
/// assert_eq!(node.client().query(SavingsOf { account: "ada".into() }).await?, 500);
/// node.stop().await
/// # }).unwrap();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer `{Q}`",
    label = "listed in `answers(…)`, but not answered",
    note = "write `impl Answer<{Q}> for {Self} {{ fn answer(&self, query: {Q}) -> … {{ … }} }}`"
)]
pub trait Answer<Q: Query> {
    /// Returns the answer: from the events projected so far, or from the state of the key. A panic is reported to the caller
    /// and changes nothing.
    fn answer(&self, query: Q) -> Q::Reply;

    /// Returns the answer to a query with headers, in place of [`answer`](Self::answer), which the default calls. Implement it
    /// if the answer depends on a tenant or a user.
    fn answer_for(&self, query: Q, context: &QueryContext<'_>) -> Q::Reply {
        let _ = context;
        self.answer(query)
    }
}

/// Decodes a query, answers it, and encodes the answer. User code.
pub(crate) fn answer_with<Q: Query>(
    envelope: &Envelope,
    answer: impl FnOnce(Q, &QueryContext<'_>) -> Q::Reply,
) -> Result<Bytes, Unanswered> {
    let query = <Q as Message>::decode(envelope.version, envelope.codec, &envelope.payload);
    let answer = answer(query.map_err(Unanswered::Undecodable)?, &QueryContext::of(envelope));
    let mut bytes = Vec::new();
    answer.write(envelope.codec, &mut bytes).map_err(Unanswered::Unwritable)?;
    Ok(Bytes::from(bytes))
}

impl<A: Stateful> Plan<A> {
    /// Lists a query that the actor answers from the state of a key.
    pub fn answers_for_key<Q: Query>(&mut self)
    where
        A: Answer<Q>,
    {
        self.add_answer::<Q>(|state, envelope| {
            let state = typed_state_ref::<A>(state).map_err(Unanswered::Undecodable)?;
            answer_with::<Q>(envelope, |query, context| state.answer_for(query, context))
        });
    }
}

impl ActorInstance {
    /// Answers a query, or refuses it: the key cannot be loaded, or waits behind a dead letter. A key that waits for the
    /// next attempt of a message answers, because nothing of that message is committed.
    pub(super) fn answer(&mut self, delivered: Delivered, ctx: &mut Ctx) {
        let context = Rc::clone(&self.dispatcher.context);
        let refused = context.refuse_new(&delivered.delivery.envelope).or_else(|| {
            let is_parked = !self.state.rare.parked.is_empty() && self.load_error.is_none();
            is_parked
                .then(|| Outcome::Unanswered("the key waits behind a dead letter: redrive or discard it".to_owned()))
        });
        if let Some(refused) = refused {
            return (delivered.delivery.completion)(refused);
        }
        if self.load_error.is_some() {
            return self.handle_after_load(delivered, ctx);
        }
        let Delivered { delivery, permit } = delivered;
        let outcome = self.answer_from_state(&delivery.envelope);
        context.counts.answers.one();
        let (completion, shard) = (delivery.completion, Rc::clone(&self.shard));
        let then = move |committed: Result<(), StoreError>| {
            // Held until now, as for a duplicate.
            drop(permit);
            completion(match committed {
                Ok(()) if !shard.is_lost() => outcome,
                Err(error) if !shard.is_lost() => Outcome::Refused(error),
                _ => Outcome::Moved,
            });
        };
        match self.last_append.get() {
            Some(ticket) => context.after_ticket(&self.shard, ticket, then),
            None => then(Ok(())),
        }
    }

    fn answer_from_state(&self, envelope: &Envelope) -> Outcome {
        let dispatcher = &self.dispatcher;
        let code = &dispatcher.context.user_code;
        let _span = tracing::debug_span!(
            target: TARGET, "answer", kind = "actor", actor = %dispatcher.actor, message = %envelope.name,
            id = %envelope.id, correlation = %envelope.correlation,
        )
        .entered();
        if let Some(error) = dispatcher.context.settings.shapes.refusal(envelope) {
            return Outcome::Undecodable(error.to_string());
        }
        let Some(answer) = dispatcher.handlers.answers.get(envelope.name.as_str()) else { return Outcome::Unhandled };
        let Some(state) = self.user.user() else { return self.shard.stopped_outcome() };
        match code.call(code.label(dispatcher.handlers.facts.name, &envelope.name), || answer(state, envelope)) {
            Ok(Ok(bytes)) => Outcome::Done(bytes, envelope.codec),
            Ok(Err(unanswered)) => unanswered.outcome(),
            Err(panicked) => Outcome::Unanswered(format!("`answer` {panicked}")),
        }
    }
}
