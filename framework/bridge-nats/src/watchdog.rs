//! Recreates stalled consumers: those that have messages and deliver none. A node that may not create consumers reports them.
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
use super::report::{OpenIssue, STREAM_ISSUE};
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
    /// created again, or reported if this node may not create it.
    pub(super) fn inspection_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        index: usize,
        state: Result<ConsumerState, BridgeError>,
        leaves_behind: bool,
    ) {
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        let source = Arc::clone(&consumer.source);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                return tracing::debug!(
                    stream = source.stream, error = %error_chain(&error),
                    "failed to read the state of a consumer",
                );
            }
        };
        consumer.measured(state.pending, monotonic());
        if consumer.status != ConsumerStatus::Open {
            return;
        }
        let has_stalled = consumer.has_stalled(state);
        if !state.has_outstanding() {
            consumer.stalled = None;
        }
        if !leaves_behind {
            consumer.left_behind = None;
        }
        let may_recreate = self.jetstream.may_recreate(&source);
        let (label, path) = (&source.consumer.label, &source.consumer.path);
        let remedy = match may_recreate {
            true => "recreating it".to_owned(),
            false => {
                let (stream, name) = path.split_once('.').unwrap_or_default();
                format!(
                    "this node may not recreate it: run `nats consumer rm {stream} {name}`, then the setup (`NatsBuilder::set_up`)"
                )
            }
        };
        let is_known = consumer.stalled.is_some();
        if has_stalled || leaves_behind && may_recreate {
            let text = || format!("{label} stalled: it has messages and delivers none; {remedy}");
            let open = || {
                OpenIssue::new(&self.report, |report| &report.issues, format!("{STREAM_ISSUE}{path} stalled"), text())
            };
            consumer.stalled.get_or_insert_with(open);
        } else if leaves_behind {
            let text = || format!("{label} has left messages in its stream, which it never delivers; {remedy}");
            let open = || OpenIssue::new(&self.report, |report| &report.notes, format!("left by {path}"), text());
            consumer.left_behind.get_or_insert_with(open);
            return;
        } else {
            return;
        }
        if may_recreate || !is_known {
            tracing::error!(
                stream = source.stream,
                pending = state.pending,
                unacknowledged = state.unacknowledged,
                leaves_behind,
                "consumer stalled: it has messages, or left some in its stream, and delivers none; {remedy}"
            );
        }
        if may_recreate {
            *self.report.last_recreated.lock() = Some((label.clone(), monotonic()));
            self.report.recreated_consumers.fetch_add(1, Ordering::Relaxed);
            consumer.status = ConsumerStatus::Checking;
            in_flight.pending_checks += 1;
            let jetstream = self.jetstream.clone();
            let recreating = async move { Completed::Checked(Some(index), jetstream.recreate_consumer(&source).await) };
            in_flight.tasks.push(recreating.boxed());
        }
    }
}
