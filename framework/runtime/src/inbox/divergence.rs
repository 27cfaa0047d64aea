//! Divergence checks of a subscription: whether the owner's log still matches the dispatched events. Reports of a log that cannot be
//! read.
//!
//! Called by the [subscription](super::subscription). Any client of the broker may send an event; only the
//! owner's answer decides. A log restored from an older backup reuses positions for other events: reading on would
//! mix two logs, dropping the events as duplicates would lose them. So the subscription stops until the owner's log
//! matches again.

use std::rc::Rc;
use std::time::Duration;

use super::subscription::{CHECK_INTERVAL, Subscription};
use whizbang_core::clock::instant;
use whizbang_core::message::Envelope;
use whizbang_core::telemetry::{TARGET, shortened};

/// Time for which a log may be unreadable before health lists it: an owner restarts faster.
const UNREAD_FOR: Duration = Duration::from_secs(10);
/// Interval at which an owner with a diverged log is asked again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

impl Subscription {
    /// Drops an event whose position was dispatched with another id, and has the owner's log checked: the log
    /// decides, not the sender. Checked repeatedly while such events arrive, one request at a time.
    pub(super) fn reject_conflicting(self: &Rc<Self>, position: u64) {
        self.monitor.counts.events_dropped.one();
        tracing::debug!(target: TARGET, source = %self.source, position, "event dropped: it differs from the one dispatched at this position");
        self.suspect.set(Some(position));
        self.needs_check.set(true);
        self.start_filling();
    }

    /// Requests a check of the owner's log at the last position, at a bounded rate.
    pub(super) fn request_check(self: &Rc<Self>) {
        let now = instant();
        if self.last_check_request.get().is_none_or(|before| before + CHECK_INTERVAL < now) {
            self.last_check_request.set(Some(now));
            self.needs_check.set(true);
            self.start_filling();
        }
    }

    /// Returns whether the owner's log contains the event that was dispatched last or is suspect, as far as known.
    pub(super) async fn log_matches(&self) -> Result<bool, String> {
        let suspect = self.suspect.get();
        let position = suspect.unwrap_or_else(|| self.last.get());
        if position == 0 || (!self.needs_check.replace(false) && suspect.is_none()) {
            return Ok(true);
        }
        let (events, head) = (self.pages)(self.source.clone(), position - 1, 1).await?;
        let is_there = |event: &&Envelope| event.origin.as_ref().is_some_and(|origin| origin.sequence == position);
        let known =
            events.first().filter(is_there).and_then(|event| self.recent_ids.borrow().matches(position, event.id));
        let matches = head >= position && known != Some(false);
        // Another suspect recorded during the request is checked next.
        if matches && self.suspect.get() == suspect {
            self.suspect.set(None);
        }
        Ok(matches)
    }

    /// Stops the subscription: the owner reports a different event, or none, at a dispatched position. Health reports
    /// it, and the owner is asked again from time to time.
    pub(super) fn report_divergence(&self, position: u64) {
        let source = &self.source;
        let why = format!(
            "events of {source} are not handled: its log differs from the one read before at position {position}. Is it an older copy? \
             The owner is asked again every {} s",
            RECHECK_INTERVAL.as_secs()
        );
        if self.issues.raise(&self.issue(), why) {
            tracing::error!(
                target: TARGET, %source, position,
                "source log diverged: is it an older copy? Events are not handled until it matches again",
            );
        }
        self.diverged.set(true);
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, done)| done());
        self.idle.notify();
    }

    /// Returns the name of the health issue.
    fn issue(&self) -> String {
        format!("events of {}", self.source)
    }

    /// Reports that the owner's log could not be read since that time.
    pub(super) fn report_unread(&self, since: Duration, reason: &str) {
        tracing::debug!(target: TARGET, source = %self.source, reason, "failed to read the owner's log");
        if since < UNREAD_FOR {
            return;
        }
        self.is_unread.set(true);
        let (source, seconds) = (&self.source, since.as_secs());
        let why = shortened(format!("failed to read events of {source} for {seconds} s: {reason}"));
        if self.issues.add_unread_source(&source.domain, why) {
            tracing::warn!(target: TARGET, %source, reason, "failed to read events of a domain for long: retrying");
        }
    }

    /// Ends what health reports about the log while it is not read. Read again, a diverged log is found and reported again.
    pub(super) fn unlist(&self) {
        self.end_unread();
        if self.diverged.get() {
            self.issues.resolve(&self.issue());
        }
    }

    fn end_unread(&self) {
        if self.is_unread.replace(false) {
            self.issues.source_read(&self.source.domain);
        }
    }

    /// Resumes the subscription: the owner's log was read and matches.
    pub(super) fn confirmed(&self) {
        self.end_unread();
        if self.diverged.replace(false) {
            self.issues.resolve(&self.issue());
            tracing::info!(target: TARGET, source = %self.source, "source log matches again: resuming");
        }
    }

    /// Applies the owner's answer that its log ends at `head`, to a request sent when `known` was the known head and
    /// `mark` the buffer mark. Higher positions claimed before the request are forged; later claims may be true and
    /// are checked next.
    pub(super) fn apply_log_end(&self, head: u64, known: u64, mark: u64) {
        let claimed = self.known.get();
        if known > head {
            self.last_disproof.set(Some(instant()));
        }
        self.known.set(if claimed > known { claimed } else { head.max(self.last.get()) });
        let forged = self.held.borrow_mut().remove_above(head, mark);
        self.monitor.counts.events_dropped.many(forged.len() as u64);
        forged.into_iter().for_each(|done| done());
    }

    /// Drops a held event whose position contains `event` in the owner's log.
    pub(super) fn drop_conflicting(&self, position: u64, event: &Envelope) {
        let forged = self.held.borrow_mut().remove_conflicting(position, event.id);
        if let Some(done) = forged {
            self.monitor.counts.events_dropped.one();
            done();
        }
    }

    /// Stops, and waits until the owner is to be asked again.
    pub(super) async fn wait_while_diverged(&self, position: u64) {
        self.report_divergence(position);
        // Set before the wait: however it is interrupted, the owner is asked before any event is dispatched.
        self.needs_check.set(true);
        tokio::time::sleep(CHECK_INTERVAL).await;
        // An owner announces a log that has grown or was restored.
        let _ = tokio::time::timeout(RECHECK_INTERVAL, self.activity.notified()).await;
    }
}
