//! A story in which time stands still: something works without end at one moment, as a timer does that rings in circles.
//!
//! Virtual time only passes while nothing can be done. Without this such a run would never end, and nobody would learn its seed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::instant;

/// So many rounds of the runtime, each of which lets up to 61 tasks go on, may pass at one moment. None of the 20,000 long runs in
/// docs/evidence.md came to that.
const ROUNDS: u32 = 100_000;

/// Lets a story go on until it ends, or until time stands still.
///
/// # Errors
/// What the story says, or that it works without end.
pub(super) async fn unless_time_stands_still<T, E: From<String>>(
    story: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut story = pin!(story);
    let begun = instant();
    let mut moment = begun;
    let mut rounds = 0;
    // A set of local tasks asks the future that it runs in every round, whether that was woken or not.
    poll_fn(|cx| {
        let now = instant();
        rounds = if now == moment { rounds + 1 } else { 0 };
        moment = now;
        if rounds > ROUNDS { Poll::Ready(Err(stands_still(moment, begun).into())) } else { story.as_mut().poll(cx) }
    })
    .await
}

fn stands_still(moment: Instant, begun: Instant) -> String {
    let after: Duration = moment - begun;
    format!("something works without end: time has stood still since {after:?} for {ROUNDS} rounds")
}
