//! The contents of one shard's log, read through the public traits of the store.

use std::sync::Arc;

use whizbang::Domain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{
    CommitListener, DeadLetter, ShardHandle, ShardReader, Store, StoreError, StoredEvent, StoredTurn, Ticket, Watermark,
};

/// The number of rows read at once.
const PAGE: usize = 1_000;

/// All that the log of one shard holds.
#[derive(Clone, Debug)]
pub struct ShardLog {
    /// The shard.
    pub shard: ShardId,
    /// The position of the last event, as the store says.
    pub position: u64,
    /// Its events, in the order in which the store lists them.
    pub events: Vec<StoredEvent>,
    /// Its streams with all their turns.
    pub streams: Vec<StreamLog>,
    /// For each destination: up to where it has committed, and the last sequence given out.
    pub outbox_heads: Vec<(ShardId, u64, u64)>,
    /// The shard's watermark for each of its sources.
    pub watermarks: Vec<Watermark>,
    /// Its unresolved dead letters, as the store lists them.
    pub dead_letters: Vec<DeadLetter>,
}

/// All turns of one stream.
#[derive(Clone, Debug)]
pub struct StreamLog {
    /// The actor's type.
    pub actor: Name,
    /// The actor's key.
    pub key: String,
    /// Its turns, in the order in which the store lists them.
    pub turns: Vec<StoredTurn>,
}

/// A reader appends nothing.
struct Deaf;

impl CommitListener for Deaf {
    fn committed(&self, _through: Ticket) {}
    fn failed(&self, _error: StoreError) {}
}

impl ShardLog {
    /// Opens every shard of a domain and reads all that it holds. The previous owner of the shards can commit nothing after that.
    ///
    /// # Errors
    /// The store's error if it cannot be read.
    ///
    /// # Panics
    /// If the domain's name is none.
    pub async fn read_domain<D: Domain>(store: &dyn Store) -> Result<Vec<Self>, StoreError> {
        let domain = Name::from_static(D::NAME).expect("a domain has a name");
        let mut logs = Vec::new();
        for number in 0..D::SHARDS {
            let shard = ShardId::new(domain.clone(), number);
            let ShardHandle { reader, .. } = store.open(&shard, D::SHARDS, Arc::new(Deaf)).await?;
            logs.push(Self::read(&shard, &*reader).await?);
        }
        Ok(logs)
    }

    /// Reads all that a shard holds. For a shard that is not written at the same time.
    ///
    /// # Errors
    /// The store's error if it cannot be read.
    pub async fn read(shard: &ShardId, reader: &dyn ShardReader) -> Result<Self, StoreError> {
        let mut events = Vec::new();
        loop {
            let after = events.last().map_or(0, |event: &StoredEvent| event.position);
            let page = reader.events(after, PAGE).await?;
            let goes_on = page.last().is_some_and(|event| event.position > after);
            events.extend(page);
            if !goes_on {
                break;
            }
        }
        let mut dead_letters: Vec<DeadLetter> = Vec::new();
        loop {
            let after = dead_letters.last().map(|letter| letter.envelope.id);
            let page = reader.dead_letters(after, PAGE).await?;
            let goes_on = page.last().is_some_and(|letter| Some(letter.envelope.id) > after);
            dead_letters.extend(page);
            if !goes_on {
                break;
            }
        }
        let mut streams = Vec::new();
        for (actor, key) in reader.streams().await? {
            // A message that waits there for its key is handled by the key's own turn.
            if actor.as_str() == "whizbang-deferred" {
                continue;
            }
            let turns = reader.history(&actor, &key).await?;
            streams.push(StreamLog { actor, key, turns });
        }
        Ok(Self {
            shard: shard.clone(),
            position: reader.position(),
            events,
            streams,
            outbox_heads: reader.outbox_heads(),
            watermarks: reader.watermarks(),
            dead_letters,
        })
    }
}

impl StreamLog {
    /// The name of the stream in findings.
    pub(super) fn named(&self, shard: &ShardId) -> String {
        format!("{shard} {}/{}", self.actor, self.key)
    }
}
