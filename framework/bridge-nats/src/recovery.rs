//! Checks the streams and consumers of a node: after each reconnection, after a panic of the loop, and when one is missing.
//!
//! Called by the consumer loop and by the bridge's actor. Notifies the node of the reconnection once everything is checked, and only if messages may have been
//! missed since the last notification.
//!
//! Nothing that was in flight before a reconnection is acknowledged afterwards without a check: the stream may be another one
//! under the same name.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::consumer_setup::SourceState;
use super::durability;
use super::in_flight::{Completed, InFlightMessages, OutboundMessage};
use super::pull_consumer::{ConsumerStatus, PullConsumer};
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::monotonic;
use whizbang_core::telemetry::error_chain;

/// The delay before the write-only streams are checked again after a failure.
const RECHECK_DELAY: Duration = Duration::from_secs(5);
/// The key of the issue about the write-only streams.
const ISSUE: &str = "stream for writing";
/// The key of the issue about the size of messages that the server accepts.
const PAYLOAD_LIMIT: &str = "payload limit";

impl ConsumerLoop {
    /// Returns the state of the loop at its start.
    pub(super) fn start(&self) -> InFlightMessages {
        let mut in_flight = InFlightMessages::default();
        in_flight.touched.extend(self.consumers.keys());
        in_flight
    }

    /// Returns the state of the loop after it has panicked. Nothing in flight is acknowledged: the server redelivers it, and the
    /// node drops duplicates. Streams and consumers are checked as after a reconnection, and the node looks for gaps.
    pub(super) fn restart(&mut self, lost: &mut InFlightMessages) -> InFlightMessages {
        for consumer in self.consumers.values_mut() {
            consumer.restart();
        }
        let mut in_flight = self.start();
        in_flight.next_number = lost.next_number;
        in_flight.disowned.append(&mut lost.disowned);
        in_flight.superseded.append(&mut lost.superseded);
        for received in std::mem::take(&mut lost.messages).into_values() {
            in_flight.outgoing.extend(received.ack_subject.map(OutboundMessage::redelivery));
        }
        in_flight.reconnect_pending = true;
        self.check_all(&mut in_flight);
        in_flight
    }

    /// Checks all streams and consumers after a reconnection.
    pub(super) fn check_all(&mut self, in_flight: &mut InFlightMessages) {
        let indices: Vec<usize> = self.consumers.keys().copied().collect();
        for index in indices {
            self.check_consumer(in_flight, index);
        }
        self.check_write_only(in_flight);
    }

    /// Reports a server that accepts only smaller messages than the one of the start, which was refused unless it accepts all. The
    /// larger messages wait in their logs, and the events behind them.
    fn check_payload_limit(&self) {
        match durability::payload_limit_issue(&self.client.server_info()) {
            None => {
                self.report.issues.close(PAYLOAD_LIMIT);
            }
            Some(issue) => {
                let text = || format!("larger messages and the events behind them are not sent: {issue}");
                if self.report.issues.open(PAYLOAD_LIMIT, text) {
                    tracing::error!("larger messages and the events behind them are not sent: {issue}");
                }
            }
        }
    }

    /// Starts the check of the streams that this node only writes to. Missing ones are created if the configuration permits it.
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
            Completed::Checked(None, Ok(SourceState::Absent))
        };
        in_flight.tasks.push(checking.boxed());
    }

    /// Starts the check of a stream and its consumer, unless one is running or there is none to check.
    pub(super) fn check_consumer(&mut self, in_flight: &mut InFlightMessages, index: usize) {
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        if matches!(consumer.status, ConsumerStatus::Checking | ConsumerStatus::Live) {
            return;
        }
        consumer.status = ConsumerStatus::Checking;
        in_flight.pending_checks += 1;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&consumer.source));
        let checking = async move { Completed::Checked(Some(index), jetstream.ensure_source(&source).await) };
        in_flight.tasks.push(checking.boxed());
    }

    /// Applies the result of a check. The node is notified of a reconnection when the last running check has completed.
    pub(super) fn check_completed(
        &mut self,
        in_flight: &mut InFlightMessages,
        index: Option<usize>,
        checked: Result<SourceState, BridgeError>,
    ) {
        in_flight.pending_checks = in_flight.pending_checks.saturating_sub(1);
        in_flight.touched.extend(index);
        let consumer = index.and_then(|index| self.consumers.get_mut(&index));
        match (consumer, checked) {
            // The shard was disowned during the check.
            (None, _) if index.is_some() => {}
            (Some(_), Ok(SourceState::Superseded(_))) => in_flight.superseded.extend(index),
            (Some(consumer), Ok(SourceState::Open(incarnation))) => {
                self.report.issues.close(&consumer.source.issue());
                consumer.mark_open(incarnation);
                consumer.is_suspect |= !self.jetstream.may_recreate(&consumer.source);
                in_flight.reconnect_pending = true;
            }
            (Some(consumer), Ok(SourceState::Absent)) => {
                if consumer.mark_absent() {
                    tracing::info!(stream = consumer.source.stream, "stream does not exist yet; its owner creates it");
                }
                consumer.retry_later();
            }
            (Some(consumer), Err(error)) => {
                let stream = &consumer.source.stream;
                let text = format!("failed to receive from stream `{stream}`: {}; retrying", error_chain(&error));
                if self.report.issues.open(&consumer.source.issue(), || text) {
                    tracing::error!(stream, error = %error_chain(&error), "failed to open a stream; retrying");
                }
                consumer.retry_later();
            }
            (None, Err(error)) => {
                let text = format!("failed to publish: {}; retrying", error_chain(&error));
                if self.report.issues.open(ISSUE, || text) {
                    tracing::error!(error = %error_chain(&error), "failed to open a stream for writing; retrying");
                }
                in_flight.check_write_only_at.get_or_insert(monotonic() + RECHECK_DELAY);
            }
            (None, Ok(_)) => {
                self.report.issues.close(ISSUE);
                in_flight.reconnect_pending = true;
            }
        }
        if in_flight.pending_checks == 0 {
            // The client records the limit shortly after the connection, and certainly before the server answers a check.
            self.check_payload_limit();
        }
        let is_open = |consumer: &PullConsumer| matches!(consumer.status, ConsumerStatus::Open | ConsumerStatus::Live);
        let any_open = self.consumers.is_empty() || self.consumers.values().any(is_open);
        // A stream that is still missing or still invalid does not count: no further message can have been lost with it.
        if in_flight.pending_checks == 0 && any_open && std::mem::take(&mut in_flight.reconnect_pending) {
            self.inbound.reconnected();
        }
    }
}
