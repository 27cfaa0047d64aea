//! What one shard sends to others: one lane per destination, a window of entries on their way, sent again if need be.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::page;
use crate::clock::instant;
use crate::message::{Envelope, ShardId};
use crate::store::{ShardReader, StoreError};
use crate::telemetry::{Counts, passes};

/// How many entries of a lane are on their way, at most.
const WINDOW: u64 = 1024;
/// How many bytes of payload they have at most; one entry may have more.
const BYTES: usize = 16 << 20;
/// How many entries are read at a time.
const PAGE: usize = 128;
/// After what time without progress a lane's entries are sent again; it doubles up to [`LONGEST`].
const PATIENCE: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

/// Hands an entry on, and returns whether there is room for more. The destination's commit is told to [`SendWindows::committed`].
pub(crate) type Forward = Rc<dyn Fn(Envelope) -> bool>;

/// What a destination says that it has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfirmationCheck {
    /// More than before.
    News,
    /// More than before, after so long a time of nothing that it was reported.
    Resumed,
    /// What was known.
    Known,
    /// More than was ever sent to it. Believed, what comes next would never be sent.
    Impossible,
}

struct SendWindow {
    /// The last sequence handed on.
    offered: u64,
    /// The bytes of each entry on its way, by its sequence, and their sum.
    sizes: VecDeque<(u64, usize)>,
    bytes: usize,
    /// The last sequence the destination has committed, by its notes.
    committed: u64,
    /// The same by its own answer, or by the store. A note may be anybody's: only what is confirmed is ever forgotten.
    confirmed: u64,
    /// The destination is being asked.
    asking: bool,
    /// The last sequence the store knows to be committed.
    stored: u64,
    /// When the entries on their way are handed on again.
    again: Instant,
    patience: Duration,
    /// Nothing is sent any more, and nothing believed.
    stopped: bool,
    /// It was reported that nothing is committed for long.
    stalled: bool,
    /// The lowest sequence on its way that the courier did not take.
    refused: Option<u64>,
    /// The destination is being asked how far it has committed.
    questioned: bool,
}

impl SendWindow {
    /// A lane of which nothing is under way.
    fn from(committed: u64) -> Self {
        Self {
            offered: committed,
            sizes: VecDeque::new(),
            bytes: 0,
            committed,
            confirmed: committed,
            asking: false,
            stored: committed,
            again: instant() + PATIENCE,
            patience: PATIENCE,
            stopped: false,
            stalled: false,
            refused: None,
            questioned: false,
        }
    }
}

impl SendWindow {
    /// How many more entries may be on their way.
    fn room(&self) -> u64 {
        if self.bytes >= BYTES { 0 } else { self.committed.saturating_add(WINDOW).saturating_sub(self.offered) }
    }

    fn offer(&mut self, sequence: u64, bytes: usize) {
        self.offered = sequence;
        self.sizes.push_back((sequence, bytes));
        self.bytes += bytes;
    }

    fn commit(&mut self, through: u64) {
        self.committed = self.committed.max(through);
        self.offered = self.offered.max(through);
        self.refused = self.refused.filter(|refused| *refused > through);
        while let Some((_, bytes)) = self.sizes.pop_front_if(|(sequence, _)| *sequence <= through) {
            self.bytes -= bytes;
        }
    }

    /// The destination itself has answered that it has committed up to `through`, asked after it had noted `noted`. Returns whether
    /// the note was false: then what was not committed is handed on again.
    fn confirm(&mut self, through: u64, noted: u64) -> bool {
        self.confirmed = self.confirmed.max(through);
        if through < noted && self.confirmed < self.committed {
            self.committed = self.confirmed;
            self.restart();
            return true;
        }
        self.commit(through);
        false
    }

    /// Nothing is on its way any longer: what is not committed is handed on again.
    fn restart(&mut self) {
        self.offered = self.committed;
        self.sizes.clear();
        self.bytes = 0;
        self.refused = None;
    }

    /// What the courier did not take is not on its way, nor what is behind it.
    fn go_back(&mut self, refused: u64) {
        self.offered = self.committed.max(refused.saturating_sub(1));
        while let Some((_, bytes)) = self.sizes.pop_back_if(|(sequence, _)| *sequence >= refused) {
            self.bytes -= bytes;
        }
    }
}

/// What has come of looking at lanes abroad that make no progress.
#[derive(Default)]
pub(crate) struct Suspicion {
    /// Something is to be handed on again.
    pub(crate) restarted: bool,
    /// The destinations to be asked, each with the last sequence handed on to it.
    pub(crate) doubtful: Vec<(ShardId, u64)>,
    /// When to look next.
    pub(crate) next: Option<Instant>,
}

/// The lanes of one shard.
pub(crate) struct SendWindows {
    lanes: RefCell<BTreeMap<ShardId, SendWindow>>,
    counts: Arc<Counts>,
}

impl SendWindows {
    pub(crate) fn new(counts: Arc<Counts>) -> Rc<Self> {
        Rc::new(Self { lanes: RefCell::default(), counts })
    }

    /// When to look for lanes without progress to such destinations.
    pub(crate) fn next_impatience(&self, of: impl Fn(&ShardId) -> bool) -> Option<Instant> {
        let lanes = self.lanes.borrow();
        let waiting = lanes.iter().filter(|(to, lane)| lane.offered > lane.committed && of(to));
        waiting.map(|(_, lane)| lane.again).min()
    }

    /// What is on its way may have been lost: it is handed on again at the next look.
    pub(crate) fn hurry(&self) {
        self.lanes.borrow_mut().values_mut().for_each(SendWindow::restart);
    }

    /// The same at once for what is on its way to one destination.
    pub(crate) fn restart(&self, to: &ShardId) {
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to).filter(|lane| !lane.stopped) {
            lane.restart();
        }
    }

    /// The same for what is on its way to one destination, unless that was just handed on.
    pub(crate) fn hurry_to(&self, to: &ShardId) {
        let now = instant();
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to)
            && !lane.stopped
            && lane.again > now + PATIENCE / 2
            && lane.patience > PATIENCE
        {
            lane.patience = PATIENCE;
            lane.restart();
        }
    }

    /// The courier did not take an entry: it is handed on again after a while, with those behind it.
    pub(crate) fn refused(&self, to: &ShardId, sequence: u64) {
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to).filter(|lane| sequence > lane.committed) {
            lane.refused = Some(lane.refused.map_or(sequence, |refused| refused.min(sequence)));
        }
    }

    /// What is on its way to such destinations may have been lost: they are asked at the next look.
    pub(crate) fn doubt_all(&self, of: impl Fn(&ShardId) -> bool) {
        let now = instant();
        for (_, lane) in self.lanes.borrow_mut().iter_mut().filter(|(to, _)| of(to)) {
            (lane.patience, lane.again) = (PATIENCE, now);
        }
    }

    /// The same for one destination, unless it is about to be asked, or was just sent something.
    pub(crate) fn doubt(&self, to: &ShardId) {
        let now = instant();
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to)
            && lane.again > now + PATIENCE / 2
            && lane.patience > PATIENCE
        {
            (lane.patience, lane.again) = (PATIENCE, now);
        }
    }

    /// The destination was asked how far it is. Returns whether `through` is more than was known.
    pub(crate) fn answered(&self, to: &ShardId, through: u64) -> bool {
        self.lanes.borrow_mut().get_mut(to).is_some_and(|lane| {
            lane.questioned = false;
            through > lane.committed
        })
    }

    /// Looks for lanes to such destinations that make no progress.
    ///
    /// The courier took what is on its way, so it is not sent again: an owner that is away would find it many times. The owner
    /// is asked instead, told how far everything was sent, and fetches what it lacks. Only what the courier did not take is handed
    /// on again. Each lane without progress for as long as patience grows is reported to `stalled`, once.
    pub(crate) fn suspicion(&self, of: impl Fn(&ShardId) -> bool, mut stalled: impl FnMut(&ShardId)) -> Suspicion {
        let now = instant();
        let mut found = Suspicion::default();
        let mut lanes = self.lanes.borrow_mut();
        for (to, lane) in lanes.iter_mut().filter(|(to, lane)| lane.offered > lane.committed && of(to)) {
            if lane.again <= now {
                if lane.patience == LONGEST && !std::mem::replace(&mut lane.stalled, true) {
                    stalled(to);
                }
                match lane.refused.take() {
                    Some(refused) => {
                        lane.go_back(refused);
                        found.restarted = true;
                    }
                    None if lane.questioned => {}
                    None => {
                        lane.questioned = true;
                        found.doubtful.push((to.clone(), lane.offered));
                    }
                }
                lane.patience = (lane.patience * 2).min(LONGEST);
                lane.again = now + lane.patience;
            }
            found.next = Some(found.next.map_or(lane.again, |next: Instant| next.min(lane.again)));
        }
        found
    }

    /// Forgets what was on its way: it is handed on again.
    pub(crate) fn reset(&self) {
        self.lanes.borrow_mut().clear();
    }

    /// Hands on what the store has for such destinations and the windows have room for. Returns `false` if it ended because
    /// there was no room for more.
    pub(crate) async fn pump(
        &self,
        reader: &Arc<dyn ShardReader>,
        onward: &Forward,
        of: impl Fn(&ShardId) -> bool,
    ) -> Result<bool, StoreError> {
        for (to, done, head) in reader.outbox_heads().into_iter().filter(|(to, ..)| of(to)) {
            loop {
                let (after, room) = {
                    let mut lanes = self.lanes.borrow_mut();
                    let lane = lanes.entry(to.clone()).or_insert_with(|| SendWindow::from(done));
                    if lane.stopped {
                        break;
                    }
                    lane.commit(done);
                    lane.confirmed = lane.confirmed.max(done);
                    lane.stored = lane.stored.max(done);
                    if lane.offered == lane.committed {
                        lane.again = instant() + lane.patience;
                    }
                    (lane.offered, lane.room())
                };
                if after >= head || room == 0 {
                    break;
                }
                let entries =
                    page::outbox(&**reader, &to, after, PAGE.min(usize::try_from(room).unwrap_or(PAGE))).await?;
                if entries.is_empty() {
                    break;
                }
                for entry in entries {
                    {
                        let mut lanes = self.lanes.borrow_mut();
                        let Some(lane) = lanes.get_mut(&to) else { return Ok(true) };
                        // A commit that came back meanwhile may have moved the lane on.
                        if entry.sequence <= lane.offered {
                            continue;
                        }
                        if lane.room() == 0 {
                            break;
                        }
                        lane.offer(entry.sequence, entry.envelope.payload.len());
                    }
                    self.counts.sent.one();
                    let envelope = entry.envelope;
                    passes!("relay", envelope.name, envelope.id, envelope.correlation);
                    if !onward(envelope) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// The destination says that it has committed all up to and including `through`. `head` is the last sequence that was sent to
    /// it; it is looked up only if `through` is more than was handed on.
    pub(crate) fn committed(&self, to: &ShardId, through: u64, head: impl FnOnce() -> u64) -> ConfirmationCheck {
        let mut lanes = self.lanes.borrow_mut();
        // Before anything is handed on, what the store knows is all that can be committed.
        let Some(lane) = lanes.get_mut(to) else {
            return if through > head() { ConfirmationCheck::Impossible } else { ConfirmationCheck::Known };
        };
        if through <= lane.committed || lane.stopped {
            return ConfirmationCheck::Known;
        }
        // It may have asked for more than was handed on, but never for more than there is.
        if through > lane.offered && through > head() {
            return ConfirmationCheck::Impossible;
        }
        lane.commit(through);
        lane.patience = PATIENCE;
        lane.again = instant() + PATIENCE;
        if std::mem::take(&mut lane.stalled) { ConfirmationCheck::Resumed } else { ConfirmationCheck::News }
    }

    /// Returns the last sequence that a destination has noted, if there is a lane to it and its owner is not being asked about it. From
    /// now on it is.
    pub(crate) fn begins_asking(&self, to: &ShardId) -> Option<u64> {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.get_mut(to).filter(|lane| !lane.asking)?;
        lane.asking = true;
        Some(lane.committed)
    }

    /// Returns whether there is a lane to a destination.
    pub(crate) fn has(&self, to: &ShardId) -> bool {
        self.lanes.borrow().contains_key(to)
    }

    /// The last sequence that a destination has confirmed, 0 if there is no lane to it.
    pub(crate) fn confirmed(&self, to: &ShardId) -> u64 {
        self.lanes.borrow().get(to).map_or(0, |lane| lane.confirmed)
    }

    /// The last sequence that a destination has noted and not confirmed, if there is one.
    pub(crate) fn noted(&self, to: &ShardId) -> Option<u64> {
        self.lanes.borrow().get(to).filter(|lane| lane.committed > lane.confirmed).map(|lane| lane.committed)
    }

    /// The owner of a destination is not being asked any longer.
    pub(crate) fn asked(&self, to: &ShardId) {
        if let Some(lane) = self.lanes.borrow_mut().get_mut(to) {
            lane.asking = false;
        }
    }

    /// The destination itself has said that it has committed up to `through`; it was asked after it had noted `noted`. Returns whether
    /// that note was false.
    pub(crate) fn confirm(&self, to: &ShardId, through: u64, noted: u64) -> bool {
        self.lanes.borrow_mut().get_mut(to).is_some_and(|lane| lane.confirm(through, noted))
    }

    /// The destinations that have noted more than they have confirmed.
    pub(crate) fn unconfirmed(&self) -> Vec<ShardId> {
        let lanes = self.lanes.borrow();
        lanes.iter().filter(|(_, lane)| lane.committed > lane.confirmed).map(|(to, _)| to.clone()).collect()
    }

    /// Hands nothing on to a destination any more.
    pub(crate) fn stop(&self, to: &ShardId) {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(to.clone()).or_insert_with(|| SendWindow::from(0));
        lane.stopped = true;
        // The caller goes on asking, and says so here for lanes that were not there before.
        lane.asking = true;
        lane.restart();
    }

    /// Hands on again what there is for a destination. Returns whether that was stopped.
    pub(crate) fn resume(&self, to: &ShardId) -> bool {
        let mut lanes = self.lanes.borrow_mut();
        lanes.get_mut(to).is_some_and(|lane| std::mem::take(&mut lane.stopped))
    }

    /// Whether all that was ever sent is committed by its destination, by what the store says was sent.
    pub(crate) fn is_at_rest(&self, heads: &[(ShardId, u64, u64)]) -> bool {
        let lanes = self.lanes.borrow();
        heads.iter().all(|(to, done, head)| lanes.get(to).map_or(*done, |lane| lane.committed.max(*done)) >= *head)
    }

    /// What the store should be told: the destination and how far it has confirmed to have committed.
    pub(crate) fn unstored(&self, at_least: u64) -> Vec<(ShardId, u64)> {
        let mut lanes = self.lanes.borrow_mut();
        lanes
            .iter_mut()
            .filter(|(_, lane)| lane.confirmed >= lane.stored + at_least.max(1))
            .map(|(to, lane)| {
                lane.stored = lane.confirmed;
                (to.clone(), lane.confirmed)
            })
            .collect()
    }

    /// Lets lanes without progress to such destinations start again from what is committed: whether any does, and when to look
    /// next. Each lane without progress for as long as patience grows is reported to `stalled`, once.
    pub(crate) fn impatience(
        &self,
        of: impl Fn(&ShardId) -> bool,
        mut stalled: impl FnMut(&ShardId),
    ) -> (bool, Option<Instant>) {
        let now = instant();
        let (mut restarted, mut next) = (false, None);
        let mut lanes = self.lanes.borrow_mut();
        for (to, lane) in lanes.iter_mut().filter(|(to, lane)| lane.offered > lane.committed && of(to)) {
            if lane.again <= now {
                restarted = true;
                if lane.patience == LONGEST && !std::mem::replace(&mut lane.stalled, true) {
                    stalled(to);
                }
                lane.restart();
                lane.patience = (lane.patience * 2).min(LONGEST);
                lane.again = now + lane.patience;
            }
            next = Some(next.map_or(lane.again, |next: Instant| next.min(lane.again)));
        }
        (restarted, next)
    }
}

#[cfg(test)]
mod tests;
