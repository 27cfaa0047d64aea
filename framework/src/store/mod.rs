//! The durable home: every shard's log of turns, and what is derived from it.
//!
//! Called by actors (append, load), the relay (events, outbox) and projections (views). Calls nothing but messages.
//! The shard logs are the truth. Positions in a shard are 1, 2, 3 … without gaps; a turn is in the log whole or not at all.
//! It never looks inside a payload.

mod catalog;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
#[cfg_attr(
    not(all(feature = "embedded", feature = "testing")),
    allow(dead_code, reason = "some stores need only a part")
)]
mod index;
pub mod memory;
#[cfg_attr(
    not(all(feature = "embedded", feature = "testing")),
    allow(dead_code, reason = "some stores need only a part")
)]
mod record;
#[cfg_attr(
    not(all(feature = "embedded", feature = "testing")),
    allow(dead_code, reason = "some stores need only a part")
)]
mod traverse;
mod turn;

pub use catalog::CatalogEntry;
pub use error::StoreError;
pub use record::MAX_TURN_BYTES;
#[cfg(feature = "testing")]
pub(crate) use record::reads_record;
pub use turn::{
    DeadLetter, DeadLetterReason, EventWrite, Mark, Note, OutboxEntry, OutboxWrite, SentMessage, Snapshot, Source,
    SourceKind, StoredEvent, StoredTurn, StreamState, Timer, TimerCursor, TimerPage, TimerWrite, Turn, View, Watermark,
};

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::clock::Timestamp;
use crate::message::{MessageId, Name, ShardId, StoreIdentity};

/// A store: opens shards, keeps views, says what it promises.
///
/// Implementations pass the conformance suite in `whizbang::testing::store`.
pub trait Store: Send + Sync + 'static {
    /// Takes ownership of a shard: raises its epoch, so that whoever had it before can commit no more, and recovers it.
    ///
    /// `shards` is how many shards the domain has; it is fixed with the first opening.
    /// `listener` hears of commits; all shards opened with the same listener share one rising row of tickets.
    ///
    /// # Errors
    /// [`StoreError::Shards`] if the domain was created with another number of shards, and what reading can meet.
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>>;

    /// Reads a shard without taking it: whoever owns it goes on owning it, and nothing is written. None if nobody ever has. For
    /// reports and checks.
    ///
    /// # Errors
    /// What reading can meet.
    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>>;

    /// The stored view of a projection, if there is one.
    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>>;

    /// Takes ownership of a projection's view: raises its epoch, so that whoever had it before can save it no more. What is there
    /// when this returns is what is found by [`view`](Self::view) until the new owner saves.
    ///
    /// # Errors
    /// What reading and writing can meet.
    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>>;

    /// Replaces the view of a projection together with its checkpoint: both or neither. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::ViewTaken`] if a younger owner has the view than the one of `epoch`, and what writing can meet. Nothing was
    /// replaced then.
    fn save_view<'a>(&'a self, projection: &'a Name, epoch: Epoch, view: View)
    -> BoxFuture<'a, Result<(), StoreError>>;

    /// The catalog of the types whose bytes are in the store; `None` if none was ever saved.
    ///
    /// # Errors
    /// What reading can meet. A damaged catalog is [`StoreError::Corrupt`].
    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>>;

    /// Replaces the whole catalog: all entries or none. Durable when it returns.
    ///
    /// # Errors
    /// What writing can meet. Nothing was replaced then.
    fn save_catalog(&self, entries: Vec<CatalogEntry>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The store's identity, made with the store; a store of an older version gets one when it is opened. `None`, the default: the
    /// store has none, and nothing keeps a second node with another store from serving the same domains.
    ///
    /// # Errors
    /// What reading can meet.
    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Replaces what [`identity`](Self::identity) returns; durable when it returns. Called twice at each start of a node with a
    /// bridge.
    ///
    /// # Errors
    /// What writing can meet. Nothing was replaced then.
    fn save_identity(&self, identity: StoreIdentity) -> BoxFuture<'_, Result<(), StoreError>> {
        drop(identity);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Drops what finds the turns before `before` by the ids of their messages: nothing asks for them any longer. Called from
    /// time to time, with a time that rises; [`ShardReader::find_turn`] may find older turns or not. Does nothing by default.
    fn forget_ids(&self, before: Timestamp) {
        let _ = before;
    }

    /// The secret with which digests of messages are keyed, so that a caller cannot make two messages with one digest. The
    /// same for the life of the store. By default 0, which protects from mistakes and not from malice.
    fn digest_key(&self) -> u128 {
        0
    }

    /// What is wrong with the store now, for health: why it refuses appends, and damage that was met while reading. Empty again
    /// once the cause is gone; damage stays until the store is opened again. Empty by default.
    fn issues(&self) -> Vec<StoreError> {
        Vec::new()
    }

    /// What a commit survives, in words: a line for the log at start.
    fn durability(&self) -> &'static str;

    /// Makes all that was appended durable and lets go of files and locks. Appends after it are refused as closed.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// An opened shard: one writer, any number of readers.
pub struct ShardHandle {
    /// The one writer. It lives on the thread of the shard's actors.
    pub writer: Box<dyn ShardWriter>,
    /// Readers see what is committed and nothing else.
    pub reader: Arc<dyn ShardReader>,
}

/// The number of an append; rises by one with each. What [`CommitListener::committed`] names is durable up to there.
pub type Ticket = u64;

/// Number of an ownership of a shard, or of a view; a commit of an older one is refused.
pub type Epoch = u64;

/// Hears from the store's writer, on whatever thread that runs: that of an append as well, before it returns. Must not block.
pub trait CommitListener: Send + Sync {
    /// Everything up to and including `through` is durable.
    fn committed(&self, through: Ticket);

    /// Nothing that was appended and not reported as committed will be. Its fate is unknown until the shard is opened again.
    fn failed(&self, error: StoreError);
}

/// What an append has brought about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The append's number.
    pub ticket: Ticket,
    /// The position of the shard's last event, this turn's included.
    pub position: u64,
    /// Whether it is durable already. If not, the listener will hear of it.
    pub committed: bool,
    /// What spares the stream's next turn a search.
    pub stream: StreamHint,
}

/// What a writer says about a stream with each of its turns, to be told it again with the next: where the stream is. It means
/// something to that one writer only. A store need not give any, nor take notice of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamHint(u64);

impl StreamHint {
    /// A hint with these bits; 0, the default, says nothing.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The one writer of a shard. Not shared: appends are in the order of the calls.
pub trait ShardWriter: Send {
    /// The epoch under which this writer commits.
    fn epoch(&self) -> Epoch;

    /// Whether an append is committed when it returns. Then nothing is won by gathering turns before they are taken.
    fn commits_at_once(&self) -> bool {
        false
    }

    /// Puts a turn at the end of the log, atomically; gives its events the next positions and its outbox entries the next
    /// sequences. Returns at once: durability comes with the ticket.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if a younger owner exists, [`StoreError::Oversize`], [`StoreError::Full`], or what broke the
    /// store. After an error nothing of the turn is in the log.
    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError>;

    /// As [`append`](Self::append), for a turn that nothing else is in flight with on its thread. The store may make it durable
    /// right here, while the thread stands still, instead of waking a thread of its own for it; the answer says whether it has.
    ///
    /// # Errors
    /// As [`append`](Self::append). That it could not be made durable is no error here: the listener hears of it.
    fn append_alone(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.append(turn)
    }

    /// Writes down how far this shard has taken from a source, when no turn is there to carry the mark.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError>;

    /// Writes down that the destination has committed all outbox entries up to and including `through`.
    /// May be written late: entries that come back after a crash are sent again and dropped as duplicates.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError>;

    /// Keeps a snapshot of a stream. A cache: it may be lost, and is never needed. It is not newer than the log: a store
    /// ignores one whose turn is not committed when it is read.
    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot);
}

/// A stream that is read in pieces; from [`ShardReader::pages`].
pub trait StreamPages: Send {
    /// The newest usable snapshot. The turns are those after it.
    fn snapshot(&self) -> Option<&Snapshot>;

    /// The next turns, oldest first; none once all were read.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>>;
}

/// A stream whose turns were read at once.
struct OnePage(StreamState);

impl StreamPages for OnePage {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.0.snapshot.as_ref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>> {
        let turns = std::mem::take(&mut self.0.turns);
        Box::pin(std::future::ready(Ok(turns)))
    }
}

/// Reads what is committed in a shard. Any thread.
pub trait ShardReader: Send + Sync {
    /// The position of the last committed event; 0 if there is none.
    fn position(&self) -> u64;

    /// A stream's newest snapshot and the turns after it, oldest first. An unknown stream is empty, not an error.
    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>>;

    /// What [`load`](Self::load) reads, in pieces, so that a long stream takes neither much memory nor the caller's thread for
    /// long. Without `snapshot` the turns begin with the first. This default reads all of it at once.
    ///
    /// # Errors
    /// What reading can meet.
    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        Box::pin(async move {
            let state = match snapshot {
                true => self.load(actor, key).await?,
                false => StreamState { snapshot: None, turns: self.history(actor, key).await? },
            };
            Ok(Box::new(OnePage(state)) as Box<dyn StreamPages>)
        })
    }

    /// All turns of a stream from its first, for history; the snapshot is not used.
    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>>;

    /// The newest committed turn of a stream that handled the message `id` from outside: its [mark](Mark::Outside) says so.
    /// `None` if there is none, or if it is older than [what is remembered](Store::forget_ids).
    ///
    /// A store finds it without reading the stream: an actor waits for the answer, and a stream may have a million turns. This
    /// default reads the whole stream.
    ///
    /// # Errors
    /// What reading can meet.
    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        Box::pin(async move {
            let turns = self.history(actor, key).await?;
            Ok(turns.into_iter().rev().find(|turn| turn.id == id && turn.digest.is_some()))
        })
    }

    /// Up to `limit` events with positions above `after`, in their order.
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>>;

    /// Up to `limit` outbox entries for `to` with sequences above `after`, in their order.
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>>;

    /// For each destination: up to where it has committed, and the last sequence given out.
    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)>;

    /// How far this shard has taken from each of its sources.
    fn watermarks(&self) -> Vec<Watermark>;

    /// How far this shard has taken from one source; 0 if nothing.
    fn watermark(&self, source: &Source) -> u64 {
        self.watermarks().into_iter().find(|mark| mark.source == *source).map_or(0, |mark| mark.through)
    }

    /// Up to `limit` timers that are due at `now`, earliest first.
    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer>;

    /// When the next timer is due.
    fn next_timer(&self) -> Option<Timestamp>;

    /// Timers of one actor type behind `after`: up to `limit` that are due at `now`. The cost grows with `limit`, not with the
    /// number of timers before or behind.
    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage;

    /// How many timers are set, by actor type; types without timers are left out. The cost does not grow with the timers.
    fn timer_counts(&self) -> Vec<(Name, usize)>;

    /// Up to `limit` unresolved dead letters with ids above `after`, by id.
    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>>;

    /// Returns the number of unresolved dead letters, those that are only [deferred](DeadLetterReason::Deferred) left out. Asked at every look at a node's health, so it costs no reading.
    fn dead_letter_count(&self) -> u64;

    /// Every stream of the shard: actor type and key, in no order. For checks and rebuilds; cost grows with the keys.
    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>>;
}
