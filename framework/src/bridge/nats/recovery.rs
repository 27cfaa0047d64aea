//! Looks after the streams and consumers of a node: after each reconnection, and when one is missing.
//!
//! Called by the intake. Tells the node that its connection is back once everything was looked at, and only if messages may
//! have been missed since the last time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::in_flight::{Completed, InFlightMessages};
use super::jetstream::Incarnation;
use super::pull_consumer::ConsumerStatus;
use crate::bridge::BridgeError;
use crate::clock::monotonic;

/// Streams that are only written to are looked at again after this time if something is wrong with one.
const RECHECK_DELAY: Duration = Duration::from_secs(5);
/// The name of the issue about them.
const ISSUE: &str = "written";

impl ConsumerLoop {
    /// The connection is back: is everything still there?
    pub(super) fn check_all(&mut self, hands: &mut InFlightMessages) {
        for at in 0..self.consumers.len() {
            self.check_consumer(hands, at);
        }
        self.check_write_only(hands);
    }

    pub(super) fn check_write_only(&self, hands: &mut InFlightMessages) {
        hands.check_write_only_at = None;
        hands.pending_checks += 1;
        let (jetstream, written) = (self.jetstream.clone(), Arc::clone(&self.write_only));
        let checking = async move {
            for wanted in written.iter() {
                if let Err(error) = jetstream.ensure_stream(wanted).await {
                    return Completed::Checked(None, Err(error));
                }
            }
            Completed::Checked(None, Ok(None))
        };
        hands.tasks.push(checking.boxed());
    }

    pub(super) fn check_consumer(&mut self, hands: &mut InFlightMessages, at: usize) {
        let Some(lane) = self.consumers.get_mut(at) else { return };
        if lane.status == ConsumerStatus::Checking {
            return;
        }
        lane.status = ConsumerStatus::Checking;
        hands.pending_checks += 1;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&lane.source));
        hands.tasks.push(async move { Completed::Checked(Some(at), jetstream.ensure_source(&source).await) }.boxed());
    }

    pub(super) fn check_completed(
        &mut self,
        hands: &mut InFlightMessages,
        at: Option<usize>,
        checked: Result<Option<Incarnation>, BridgeError>,
    ) {
        hands.pending_checks = hands.pending_checks.saturating_sub(1);
        let lane = at.and_then(|at| self.consumers.get_mut(at));
        match (lane, checked) {
            (Some(lane), Ok(Some(incarnation))) => {
                self.report.issues.close(&lane.source.stream);
                lane.mark_open(incarnation);
                hands.reconnect_pending = true;
            }
            (Some(lane), Ok(None)) => {
                if lane.mark_absent() {
                    tracing::info!(stream = lane.source.stream, "the stream does not exist yet; its owner creates it");
                }
                lane.retry_later();
            }
            (Some(lane), Err(error)) => {
                let stream = &lane.source.stream;
                let text = format!("nothing is received by stream `{stream}`: {error}; it is tried again");
                if self.report.issues.open(stream, || text) {
                    tracing::error!(stream, %error, "failed to open a stream; trying again");
                }
                lane.retry_later();
            }
            (None, Err(error)) => {
                let text = format!("nothing can be published: {error}; it is tried again");
                if self.report.issues.open(ISSUE, || text) {
                    tracing::error!(%error, "failed to open a stream for writing; trying again");
                }
                hands.check_write_only_at.get_or_insert(monotonic() + RECHECK_DELAY);
            }
            (None, Ok(_)) => {
                self.report.issues.close(ISSUE);
                hands.reconnect_pending = true;
            }
        }
        let opened = self.consumers.iter().any(|lane| lane.status == ConsumerStatus::Open) || self.consumers.is_empty();
        // A stream that is still missing, or still wrong, is no news: after it nothing can have been lost.
        if hands.pending_checks == 0 && opened && std::mem::take(&mut hands.reconnect_pending) {
            self.inbound.reconnected();
        }
    }
}
