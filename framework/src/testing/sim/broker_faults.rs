//! What may be done to the broker of a simulated cluster on purpose, and to the ways to it.
//!
//! Called by what [brings faults about](super::fault_scheduler). Each says what it does; whether it has hit something is counted where it does.

use std::time::Duration;

use super::broker::{ACK_WAIT, Broker, IN_HAND, WINDOW};
use super::fault_counts::FaultEvent;
use crate::clock::instant;
use crate::testing::broker::ConsumerSettings;

impl Broker {
    pub(super) fn cut(&self, from: usize, to: usize) {
        self.state().cuts.insert((from, to));
    }

    /// Opens a way again; the nodes are told, as a client library would tell them.
    pub(super) fn mend(&self, from: usize, to: usize) {
        if self.state().cuts.remove(&(from, to)) {
            self.reconnected(from);
            self.reconnected(to);
        }
    }

    /// From now on a service hears nothing, or is not heard, or both.
    pub(super) fn isolate(&self, service: usize, deaf: bool, mute: bool) {
        let mut state = self.state();
        if deaf {
            state.deaf.insert(service);
        }
        if mute {
            state.mute.insert(service);
        }
    }

    /// Connects it again.
    pub(super) fn connect(&self, service: usize) {
        let mut state = self.state();
        let was = state.deaf.remove(&service) | state.mute.remove(&service);
        drop(state);
        if was {
            self.reconnected(service);
            self.ring_all();
        }
    }

    fn reconnected(&self, service: usize) {
        for line in self.lines_of(service) {
            line.door.reconnected();
        }
    }

    /// Stands still for a while.
    pub(super) fn pause(&self, lasts: Duration) {
        self.state().paused = Some(instant() + lasts);
    }

    /// Has no leader for a while: takes nothing in for sure, brings nothing, and has forgotten the last words of all nodes.
    pub(super) fn elect(&self, lasts: Duration) {
        let now = instant();
        let mut state = self.state();
        state.electing = Some(now + lasts);
        for (stream, consumer) in state.model.consumers() {
            if state.model.lose_last_acknowledgement(&stream, &consumer, now) {
                self.2.one(FaultEvent::WordForgotten);
            }
        }
    }

    /// Loses all messages, and all that is under way. Nobody is told: the numbers must show it.
    pub(super) fn empty(&self) {
        let mut state = self.state();
        state.age += 1;
        state.emptied = Some(instant());
        self.2.add(FaultEvent::EmptiedAway, state.under_way as u64);
        state.under_way = 0;
        for name in state.model.stream_names() {
            let lost = state.model.purge_stream(&name).unwrap_or(0);
            self.2.add(FaultEvent::EmptiedAway, lost as u64);
        }
    }

    /// Loses all streams with their consumers.
    pub(super) fn lose_streams(&self) {
        {
            let mut state = self.state();
            state.emptied = Some(instant());
            for name in state.model.stream_names() {
                state.model.delete_stream(&name);
                self.2.one(FaultEvent::StreamLost);
            }
        }
        self.ring_all();
    }

    /// Knows ids for a while: drops what comes again.
    pub(super) fn drop_repeats(&self, window: Duration, lasts: Duration) {
        let mut state = self.state();
        state.naming = Some(instant() + lasts);
        state.window = window;
        state.model.reconfigure(|stream, _| stream.duplicate_window = window);
    }

    /// Fails in the middle of storing, now and then: the id is known then, the message is not there.
    pub(super) fn fail_to_store(&self, lasts: Duration) {
        self.drop_repeats(WINDOW, lasts + WINDOW);
        self.state().failing = Some(instant() + lasts);
    }

    pub(super) fn set_ack_wait(&self, wait: Option<Duration>) {
        let mut state = self.state();
        // With no patience at all a message would come again before anybody has looked at it, for ever in one moment.
        state.consumers.ack_wait = wait.map_or(ACK_WAIT, |wait| wait.max(Duration::from_millis(1)));
        state.retune();
        drop(state);
        self.ring_all();
    }

    pub(super) fn set_in_hand(&self, most: Option<usize>) {
        let mut state = self.state();
        state.consumers.max_ack_pending = most.unwrap_or(IN_HAND);
        state.retune();
        drop(state);
        self.ring_all();
    }

    /// Lets the handlers of a service take so long for each message.
    pub(super) fn slow_down(&self, service: usize, each: Duration, lasts: Duration) {
        self.state().slow.insert(service, (instant() + lasts, each));
    }

    /// How long a message for a service waits for its handlers, and how long it takes them.
    pub(super) fn handlers_take(&self, service: usize) -> Duration {
        /// So far behind a node may be at most: then it would have no room.
        const BEHIND: Duration = Duration::from_secs(3);
        let now = instant();
        let mut state = self.state();
        let Some((_, each)) = state.slow.get(&service).copied().filter(|(until, _)| *until > now) else {
            return Duration::ZERO;
        };
        let begins = state.busy.get(&service).copied().filter(|busy| *busy > now).unwrap_or(now);
        let ends = (begins + each).min(now + BEHIND);
        state.busy.insert(service, ends);
        self.2.one(FaultEvent::HandlerSlow);
        ends - now
    }

    /// Nothing goes wrong any more.
    pub(super) fn calm(&self) {
        let mut state = self.state();
        (state.paused, state.electing, state.naming, state.failing) = (None, None, None, None);
        state.consumers = ConsumerSettings { ack_wait: ACK_WAIT, max_ack_pending: IN_HAND };
        state.slow.clear();
        state.retune();
        drop(state);
        self.ring_all();
    }
}
