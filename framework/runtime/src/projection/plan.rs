//! Projection plan: the events and queries that the derive lists for a projection.

use std::cell::Cell;
use std::collections::HashMap;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::{Answer, Project, Projection};
use crate::actor::{EventContext, Unanswered, answer_with, names};
use crate::router::{ActorCard, MessageCard, StateCard};
use whizbang_core::message::{CodecError, Domain, Envelope, Event, Message, Query};
use whizbang_core::store::Statement;

/// Projects an event, and sets the cell when the view is about to change. Returns its statements. Fails if the event cannot be
/// decoded.
type Projecting<P> = fn(&mut P, &Envelope, &Cell<bool>) -> Result<Vec<Statement>, CodecError>;
/// Answers a query.
type Answering<P> = fn(&P, &Envelope) -> Result<Bytes, Unanswered>;

/// List filled by [`Projection::wire`].
#[doc(hidden)]
pub struct ProjectionPlan<P> {
    pub(crate) projects: HashMap<(&'static str, &'static str), Projecting<P>, FixedState>,
    pub(crate) answers: HashMap<(&'static str, &'static str), Answering<P>, FixedState>,
    pub(crate) card: ActorCard,
}

impl<P> std::fmt::Debug for ProjectionPlan<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProjectionPlan").field("card", &self.card).finish_non_exhaustive()
    }
}

impl<P: Projection> ProjectionPlan<P> {
    /// Returns the filled list of a projection.
    pub(crate) fn of() -> Self {
        let card = ActorCard {
            name: P::NAME.to_owned(),
            role: "projection",
            formerly: P::FORMERLY,
            needs_statements: P::RESET.is_some(),
            state: Some(StateCard { schema: P::SCHEMA, shape: P::shape }),
            ..ActorCard::default()
        };
        let mut plan = Self { projects: HashMap::default(), answers: HashMap::default(), card };
        P::wire(&mut plan);
        plan
    }

    /// Lists an event that is projected.
    pub fn projects<E: Event>(&mut self)
    where
        P: Project<E>,
    {
        self.card.takes.push(MessageCard::of::<E>());
        let project: Projecting<P> = |view, envelope, changes| {
            let about = EventContext::of(envelope);
            let mut statements = Vec::new();
            <E as Message>::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
                changes.set(true);
                view.project(&event, &about);
                statements.append(&mut view.statements(&event, &about));
            })
            .map(|_| statements)
        };
        self.projects.extend(names::<E>().map(|name| ((<E::Domain as Domain>::NAME, name), project)));
    }

    /// Lists a query that is answered.
    pub fn answers<Q: Query>(&mut self)
    where
        P: Answer<Q>,
    {
        self.card.answers.push(MessageCard::of_query::<Q>());
        let answer: Answering<P> =
            |view, envelope| answer_with::<Q>(envelope, |query, context| view.answer_for(query, context));
        self.answers.extend(names::<Q>().map(|name| ((<Q::Domain as Domain>::NAME, name), answer)));
    }
}
