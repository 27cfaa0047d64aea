//! The path of one order through all services, put together from their logs: actors, results, times and causes.

mod causes;
mod page;
mod search;
mod text;

use whizbang::message::{Kind, rejection_in};
use whizbang::store::{Note, StoredTurn};

use self::causes::Causes;
use self::search::{Found, search};
use crate::service::{Home, Service, ShopError};

/// The way of one order.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The order.
    pub order: String,
    /// Its steps, in the order in which they were taken; causes before what they caused.
    pub steps: Vec<Step>,
}

/// One turn of one actor for the order.
#[derive(Clone, Debug)]
pub struct Step {
    /// The service.
    pub service: Service,
    /// The actor: its type and its key; of a worker its type.
    pub who: String,
    /// The results: events recorded, a rejection, messages sent.
    pub what: Vec<String>,
    /// Milliseconds since the order was placed.
    pub at_ms: u64,
    /// The cause.
    pub because: String,
}

impl Flow {
    /// Puts together the path of an order, as far as it has come. `None`: there is no such order.
    ///
    /// # Errors
    /// [`ShopError`] if a store cannot be read.
    pub async fn of(home: &Home, order: &str) -> Result<Option<Self>, ShopError> {
        let found = search(home, order).await?;
        let Some(first) = found.first().map(|found| found.turn.clone()) else { return Ok(None) };
        let causes = Causes::of(&found);
        let mut steps: Vec<(usize, Step)> =
            found.iter().enumerate().map(|(at, found)| (causes.depth(at), step(found, &first, &causes))).collect();
        // Clocks tick in milliseconds: of two steps in one tick the cause comes first.
        steps.sort_by_key(|(depth, step)| (step.at_ms, *depth));
        Ok(Some(Self { order: order.to_owned(), steps: steps.into_iter().map(|(_, step)| step).collect() }))
    }
}

fn step(found: &Found, first: &StoredTurn, causes: &Causes) -> Step {
    let turn = &found.turn;
    let because = match (causes.what(turn.id), &turn.timer) {
        (Some(what), _) => what.to_owned(),
        (None, Some(timer)) => format!("the timer {timer}"),
        (None, None) => "a client".to_owned(),
    };
    Step {
        service: found.service,
        who: format!("{} {}", found.actor, found.key).trim_end().to_owned(),
        what: what(found),
        at_ms: u64::try_from(turn.time.since(first.time).as_millis()).unwrap_or(u64::MAX),
        because,
    }
}

/// The results of a turn, in words.
fn what(Found { turn, key, .. }: &Found) -> Vec<String> {
    let mut what: Vec<String> = turn.events.iter().map(|event| event.name.to_string()).collect();
    if !turn.reply.is_empty()
        && let Ok(Some(no)) = rejection_in(turn.reply_codec, &turn.reply)
    {
        what.push(format!("says no: {}", no.text()));
    }
    for (timer, set) in &turn.timers {
        what.push(format!("{} the timer {timer}", if *set { "sets" } else { "clears" }));
    }
    let commands: Vec<&str> =
        turn.sent.iter().filter(|sent| sent.kind == Kind::Command).map(|sent| sent.name.as_str()).collect();
    for same in commands.chunk_by(|one, other| one == other) {
        match same {
            [command] => what.push(format!("sends {command}")),
            [command, ..] => what.push(format!("sends {command} {} times", same.len())),
            [] => {}
        }
    }
    for note in &turn.notes {
        match note {
            Note::Attempt { attempt, .. } => what.push(format!("fails in attempt {attempt}")),
            Note::DeadLetter(_) => what.push("puts it among the dead letters".to_owned()),
            Note::Ended => what.push("ends".to_owned()),
            _ => {}
        }
    }
    if what.is_empty() {
        what.push(if key.is_empty() { "does it" } else { "takes note" }.to_owned());
    }
    what
}
