//! Checks the streams and consumers of a node: after each reconnection, and when one is missing.
//!
//! Called by the consumer loop. Notifies the node of the reconnection once everything is checked, and only if messages may have been
//! missed since the last notification.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::in_flight::{Completed, InFlightMessages};
use super::jetstream::Incarnation;
use super::pull_consumer::ConsumerStatus;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;

/// The delay before the write-only streams are checked again after a failure.
const RECHECK_DELAY: Duration = Duration::from_secs(5);
/// The key of the issue about the write-only streams.
const ISSUE: &str = "written";

impl ConsumerLoop {
    /// Checks all streams and consumers after a reconnection.
    pub(super) fn check_all(&mut self, in_flight: &mut InFlightMessages) {
        for index in 0..self.consumers.len() {
            self.check_consumer(in_flight, index);
        }
        self.check_write_only(in_flight);
    }

    pub(super) fn check_write_only(&self, in_flight: &mut InFlightMessages) {
        in_flight.check_write_only_at = None;
        in_flight.pending_checks += 1;
        let (jetstream, write_only) = (self.jetstream.clone(), Arc::clone(&self.write_only));
        let checking = async move {
            for wanted in write_only.iter() {
                if let Err(error) = jetstream.ensure_stream(wanted).await {
                    return Completed::Checked(None, Err(error));
                }
            }
            Completed::Checked(None, Ok(None))
        };
        in_flight.tasks.push(checking.boxed());
    }

    pub(super) fn check_consumer(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        let Some(consumer) = self.consumers.get_mut(index) else { return };
        if consumer.status == ConsumerStatus::Checking {
            return;
        }
        consumer.status = ConsumerStatus::Checking;
        in_flight.pending_checks += 1;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&consumer.source));
        let checking = async move { Completed::Checked(Some(index), jetstream.ensure_source(&source).await) };
        in_flight.tasks.push(checking.boxed());
    }

    pub(super) fn check_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        index: Option<usize>,
        checked: Result<Option<Incarnation>, BridgeError>,
    ) {
        in_flight.pending_checks = in_flight.pending_checks.saturating_sub(1);
        let consumer = index.and_then(|index| self.consumers.get_mut(index));
        match (consumer, checked) {
            (Some(consumer), Ok(Some(incarnation))) => {
                self.report.issues.close(&consumer.source.stream);
                consumer.mark_open(incarnation);
                in_flight.reconnect_pending = true;
            }
            (Some(consumer), Ok(None)) => {
                if consumer.mark_absent() {
                    tracing::info!(stream = consumer.source.stream, "stream does not exist yet; its owner creates it");
                }
                consumer.retry_later();
            }
            (Some(consumer), Err(error)) => {
                let stream = &consumer.source.stream;
                let text = format!("failed to receive from stream `{stream}`: {error}; retrying");
                if self.report.issues.open(stream, || text) {
                    tracing::error!(stream, %error, "failed to open a stream; retrying");
                }
                consumer.retry_later();
            }
            (None, Err(error)) => {
                let text = format!("failed to publish: {error}; retrying");
                if self.report.issues.open(ISSUE, || text) {
                    tracing::error!(%error, "failed to open a stream for writing; retrying");
                }
                in_flight.check_write_only_at.get_or_insert(monotonic() + RECHECK_DELAY);
            }
            (None, Ok(_)) => {
                self.report.issues.close(ISSUE);
                in_flight.reconnect_pending = true;
            }
        }
        let any_open =
            self.consumers.is_empty() || self.consumers.iter().any(|consumer| consumer.status == ConsumerStatus::Open);
        // A stream that is still missing or still invalid does not count: no further message can have been lost with it.
        if in_flight.pending_checks == 0 && any_open && std::mem::take(&mut in_flight.reconnect_pending) {
            self.inbound.reconnected();
        }
    }
}
