//! Looks after the streams and consumers of a node: after each reconnection, and when one is missing.
//!
//! Called by the intake. Tells the node that its connection is back once everything was looked at, and only if messages may
//! have been missed since the last time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::consumer::ConsumerLoop;
use super::in_flight::{Done, InFlightMessages};
use super::jetstream::Incarnation;
use super::pull_consumer::State;
use crate::bridge::BridgeError;
use crate::clock::monotonic;

/// Streams that are only written to are looked at again after this time if something is wrong with one.
const AGAIN: Duration = Duration::from_secs(5);
/// The name of the issue about them.
const WRITTEN: &str = "written";

impl ConsumerLoop {
    /// The connection is back: is everything still there?
    pub(super) fn look_after_all(&mut self, hands: &mut InFlightMessages) {
        for at in 0..self.lanes.len() {
            self.look_after(hands, at);
        }
        self.look_after_written(hands);
    }

    pub(super) fn look_after_written(&self, hands: &mut InFlightMessages) {
        hands.look = None;
        hands.unchecked += 1;
        let (jetstream, written) = (self.jetstream.clone(), Arc::clone(&self.written));
        let checking = async move {
            for wanted in written.iter() {
                if let Err(error) = jetstream.ensure_stream(wanted).await {
                    return Done::Checked(None, Err(error));
                }
            }
            Done::Checked(None, Ok(None))
        };
        hands.doing.push(checking.boxed());
    }

    pub(super) fn look_after(&mut self, hands: &mut InFlightMessages, at: usize) {
        let Some(lane) = self.lanes.get_mut(at) else { return };
        if lane.state == State::Checking {
            return;
        }
        lane.state = State::Checking;
        hands.unchecked += 1;
        let (jetstream, source) = (self.jetstream.clone(), Arc::clone(&lane.source));
        hands.doing.push(async move { Done::Checked(Some(at), jetstream.ensure_source(&source).await) }.boxed());
    }

    pub(super) fn checked(
        &mut self,
        hands: &mut InFlightMessages,
        at: Option<usize>,
        checked: Result<Option<Incarnation>, BridgeError>,
    ) {
        hands.unchecked = hands.unchecked.saturating_sub(1);
        let lane = at.and_then(|at| self.lanes.get_mut(at));
        match (lane, checked) {
            (Some(lane), Ok(Some(incarnation))) => {
                self.report.issues.close(&lane.source.stream);
                lane.open(incarnation);
                hands.news = true;
            }
            (Some(lane), Ok(None)) => {
                if lane.is_absent() {
                    tracing::info!(stream = lane.source.stream, "the stream does not exist yet; its owner creates it");
                }
                lane.miss();
            }
            (Some(lane), Err(error)) => {
                let stream = &lane.source.stream;
                let text = format!("nothing is received by stream `{stream}`: {error}; it is tried again");
                if self.report.issues.open(stream, || text) {
                    tracing::error!(stream, %error, "failed to open a stream; trying again");
                }
                lane.miss();
            }
            (None, Err(error)) => {
                let text = format!("nothing can be published: {error}; it is tried again");
                if self.report.issues.open(WRITTEN, || text) {
                    tracing::error!(%error, "failed to open a stream for writing; trying again");
                }
                hands.look.get_or_insert(monotonic() + AGAIN);
            }
            (None, Ok(_)) => {
                self.report.issues.close(WRITTEN);
                hands.news = true;
            }
        }
        let opened = self.lanes.iter().any(|lane| lane.state == State::Open) || self.lanes.is_empty();
        // A stream that is still missing, or still wrong, is no news: after it nothing can have been lost.
        if hands.unchecked == 0 && opened && std::mem::take(&mut hands.news) {
            self.door.reconnected();
        }
    }
}
