//! The acknowledgement of a message that a bridge delivered.

use futures_util::future::{BoxFuture, join_all};

/// Acknowledgment of a message received from the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckOutcome {
    /// Acknowledge: its effect is committed, or it is a duplicate or a dead letter.
    Ack,
    /// Redeliver later: it was not handled.
    Retry,
    /// No handler exists and no caller is waiting: move it to the refused stream. Holds the reason.
    Reject(String),
}

impl AckOutcome {
    /// Waits for the outcomes of messages that are acknowledged together, and returns the one for all of them.
    ///
    /// This is [`Retry`](Self::Retry) if one of them has to be redelivered, otherwise the first [`Reject`](Self::Reject), otherwise
    /// [`Ack`](Self::Ack).
    pub async fn of_all(outcomes: Vec<BoxFuture<'static, Self>>) -> Self {
        let mut outcomes = join_all(outcomes).await;
        if outcomes.contains(&Self::Retry) {
            return Self::Retry;
        }
        let rejected = outcomes.iter().position(|outcome| matches!(outcome, Self::Reject(_)));
        rejected.map_or(Self::Ack, |first| outcomes.swap_remove(first))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::ready;

    use super::*;

    #[test]
    fn messages_acknowledged_together_have_the_outcome_of_the_worst() {
        let (ack, retry) = (AckOutcome::Ack, AckOutcome::Retry);
        let reject = |reason: &str| AckOutcome::Reject(reason.to_owned());
        for (outcomes, of_all) in [
            (vec![], ack.clone()),
            (vec![ack.clone(), ack.clone()], ack.clone()),
            (vec![ack.clone(), reject("a"), reject("b")], reject("a")),
            (vec![reject("a"), retry.clone(), ack.clone()], retry.clone()),
            (vec![retry.clone(), reject("a")], retry),
        ] {
            let each = outcomes.iter().cloned().map(|outcome| ready(outcome).boxed()).collect();
            assert_eq!(AckOutcome::of_all(each).now_or_never(), Some(of_all), "{outcomes:?}");
        }
    }
}
