//! Recreates stalled consumers: those that have messages and deliver none.
//!
//! Called by the consumer loop when two pulls in a row have expired without a message. [`PullConsumer`] detects the stall.
//!
//! [`PullConsumer`]: super::pull_consumer::PullConsumer

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::consumer_setup::ConsumerState;
use super::in_flight::{Completed, InFlightMessages};
use super::pull_consumer::ConsumerStatus;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::telemetry::error_chain;

impl ConsumerLoop {
    /// Inspects a consumer that has been silent for two pulls.
    pub(super) fn inspect_consumer(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        consumer.is_suspect = false;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&consumer.source));
        let inspection = async move {
            let state = jetstream.consumer_state(&source.consumer.path).await;
            let leaves_behind = jetstream.leaves_behind(&source).await;
            Completed::Inspected(index, state, leaves_behind)
        };
        in_flight.tasks.push(inspection.boxed());
    }

    /// Asks the server how many messages wait for a consumer that does not pull.
    pub(super) fn measure_consumer(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        let Some(consumer) = self.consumers.get(&index) else { return };
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&consumer.source));
        let measuring =
            async move { Completed::Measured(index, jetstream.consumer_state(&source.consumer.path).await) };
        in_flight.tasks.push(measuring.boxed());
    }

    /// Records how many messages wait for a consumer. A failure to ask is repeated with the next question.
    pub(super) fn measurement_completed(&mut self, index: usize, state: Result<ConsumerState, BridgeError>) {
        if let (Some(consumer), Ok(state)) = (self.consumers.get_mut(&index), state) {
            consumer.measured(state.pending, monotonic());
        }
    }

    /// Compares two inspections of a consumer. One that has messages, and delivers none between them, has stalled: it is
    /// created again.
    pub(super) fn inspection_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        index: usize,
        state: Result<ConsumerState, BridgeError>,
        leaves_behind: bool,
    ) {
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        let source = Arc::clone(&consumer.source);
        if let Ok(state) = &state {
            consumer.measured(state.pending, monotonic());
        }
        match state {
            Ok(state) if consumer.status == ConsumerStatus::Open && (consumer.has_stalled(state) || leaves_behind) => {
                tracing::error!(
                    stream = source.stream,
                    pending = state.pending,
                    unacknowledged = state.unacknowledged,
                    leaves_behind,
                    "consumer stalled: it has messages, or left some in its stream, and delivers none; recreating it"
                );
                let text = format!("{} stalled: it delivers no messages; recreating it", source.consumer.label);
                self.report.issues.open(source.issue(), || text);
                self.report.recreated_consumers.fetch_add(1, Ordering::Relaxed);
                consumer.status = ConsumerStatus::Checking;
                in_flight.pending_checks += 1;
                let jetstream = self.jetstream.clone();
                let recreating =
                    async move { Completed::Checked(Some(index), jetstream.recreate_consumer(&source).await) };
                in_flight.tasks.push(recreating.boxed());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(
                stream = source.stream, error = %error_chain(&error),
                "failed to read the state of a consumer",
            ),
        }
    }
}
