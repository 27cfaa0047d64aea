//! The history of one order in all services, assembled from their logs: actors, results, times and causes.

mod causes;
mod page;
mod search;
mod text;

use whizbang::message::{Kind, rejection_in};
use whizbang::store::{Note, StoredTurn};

use self::causes::Causes;
use self::search::{Found, search};
use crate::service::{DataFolder, Service, ShopError};

/// The history of one order.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The order.
    pub order: String,
    /// Its steps by time; a cause comes before its results.
    pub steps: Vec<Step>,
}

/// One turn of one actor for the order.
#[derive(Clone, Debug)]
pub struct Step {
    /// The service.
    pub service: Service,
    /// The type and the key of the actor; a worker has no key.
    pub actor: String,
    /// The results: recorded events, a rejection, timers, sent commands.
    pub results: Vec<String>,
    /// Milliseconds since the order was placed.
    pub at_ms: u64,
    /// The cause.
    pub cause: String,
}

impl Flow {
    /// Assembles the history of an order so far. Returns `None` if the order does not exist.
    ///
    /// # Errors
    /// [`ShopError`] if a store cannot be read.
    pub async fn of(data: &DataFolder, order: &str) -> Result<Option<Self>, ShopError> {
        let found = search(data, order).await?;
        let Some(first) = found.first().map(|found| found.turn.clone()) else { return Ok(None) };
        let causes = Causes::of(&found);
        let mut steps: Vec<(usize, Step)> =
            found.iter().enumerate().map(|(at, found)| (causes.depth(at), step(found, &first, &causes))).collect();
        // Times have a resolution of 1 ms. Of two steps at the same time the cause comes first.
        steps.sort_by_key(|(depth, step)| (step.at_ms, *depth));
        Ok(Some(Self { order: order.to_owned(), steps: steps.into_iter().map(|(_, step)| step).collect() }))
    }
}

fn step(found: &Found, first: &StoredTurn, causes: &Causes) -> Step {
    let turn = &found.turn;
    let cause = match (causes.describe(turn.id), &turn.timer) {
        (Some(message), _) => message.to_owned(),
        (None, Some(timer)) => format!("the timer {timer}"),
        (None, None) => "a client".to_owned(),
    };
    Step {
        service: found.service,
        actor: format!("{} {}", found.actor, found.key).trim_end().to_owned(),
        results: results(found),
        at_ms: u64::try_from(turn.time.since(first.time).as_millis()).unwrap_or(u64::MAX),
        cause,
    }
}

/// Describes the results of a turn.
fn results(Found { turn, key, .. }: &Found) -> Vec<String> {
    let mut results: Vec<String> = turn.events.iter().map(|event| event.name.to_string()).collect();
    if !turn.reply.is_empty()
        && let Ok(Some(rejection)) = rejection_in(turn.reply_codec, &turn.reply)
    {
        results.push(format!("rejects: {}", rejection.text()));
    }
    for (timer, set) in &turn.timers {
        results.push(format!("{} the timer {timer}", if *set { "sets" } else { "clears" }));
    }
    let commands: Vec<&str> =
        turn.sent.iter().filter(|sent| sent.kind == Kind::Command).map(|sent| sent.name.as_str()).collect();
    for same in commands.chunk_by(|one, other| one == other) {
        match same {
            [command] => results.push(format!("sends {command}")),
            [command, ..] => results.push(format!("sends {command} {} times", same.len())),
            [] => {}
        }
    }
    for note in &turn.notes {
        match note {
            Note::Attempt { attempt, .. } => results.push(format!("fails in attempt {attempt}")),
            Note::DeadLetter(_) => results.push("becomes a dead letter".to_owned()),
            Note::Ended => results.push("ends".to_owned()),
            _ => {}
        }
    }
    if results.is_empty() {
        results.push(if key.is_empty() { "done" } else { "no change" }.to_owned());
    }
    results
}
