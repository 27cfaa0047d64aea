//! Looks after consumers that deliver nothing though they have messages.
//!
//! Called by the intake when two requests in a row have expired without a message. [`Lane`](super::pull_consumer::PullConsumer) decides.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::consumer_setup::ConsumerState;
use super::in_flight::{Completed, InFlightMessages};
use super::pull_consumer::ConsumerStatus;
use crate::bridge::BridgeError;

impl ConsumerLoop {
    /// Looks at the consumer of a lane that has been silent for two requests.
    pub(super) fn inspect_consumer(&mut self, hands: &mut InFlightMessages, at: usize) {
        let Some(lane) = self.consumers.get_mut(at) else { return };
        lane.is_suspect = false;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&lane.source));
        let looking = async move {
            let state = jetstream.consumer_state(&source.consumer.path).await;
            let leaves_behind = jetstream.leaves_behind(&source).await;
            Completed::Inspected(at, state, leaves_behind)
        };
        hands.tasks.push(looking.boxed());
    }

    pub(super) fn inspection_completed(
        &mut self,
        hands: &mut InFlightMessages,
        at: usize,
        state: Result<ConsumerState, BridgeError>,
        leaves_behind: bool,
    ) {
        let Some(lane) = self.consumers.get_mut(at) else { return };
        let source = Arc::clone(&lane.source);
        match state {
            Ok(state) if lane.status == ConsumerStatus::Open && (lane.has_stalled(state) || leaves_behind) => {
                tracing::error!(
                    stream = source.stream,
                    pending = state.pending,
                    unacknowledged = state.unacknowledged,
                    leaves_behind,
                    "consumer stalled: it has messages, or left some in its stream, and delivers none; recreating it"
                );
                let text = format!(
                    "{} delivers nothing of what is in its stream and is being recreated",
                    source.consumer.label
                );
                self.report.issues.open(&source.stream, || text);
                self.report.recreated_consumers.fetch_add(1, Ordering::Relaxed);
                lane.status = ConsumerStatus::Checking;
                hands.pending_checks += 1;
                let jetstream = self.jetstream.clone();
                let recreating =
                    async move { Completed::Checked(Some(at), jetstream.recreate_consumer(&source).await) };
                hands.tasks.push(recreating.boxed());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(stream = source.stream, %error, "failed to read the state of a consumer"),
        }
    }
}
