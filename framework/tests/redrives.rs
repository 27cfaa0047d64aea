//! Two people at once at a worker's dead letters: each job is done once more, and not once for each of them.

mod payments;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use payments::*;
use tokio::sync::Notify;
use whizbang::SendError;
use whizbang::clock::Timestamp;
use whizbang::message::{MessageId, Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::{
    CatalogEntry, CommitListener, DeadLetter, Epoch, OutboxEntry, ShardHandle, ShardReader, Store, StoreError,
    StoredEvent, StoredTurn, StreamState, Timer, TimerPage, TimerPlace, View, Watermark,
};

/// Holds one reading of dead letters back, once they are read.
#[derive(Default)]
struct Hold {
    next: AtomicBool,
    reads: Notify,
    go: Notify,
}

/// A store whose dead letters may take their time.
struct SlowLetters(MemoryStore, Arc<Hold>);

struct SlowReader(Arc<dyn ShardReader>, Arc<Hold>);

impl Store for SlowLetters {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        let opened = self.0.open(shard, shards, listener);
        let slow = |ShardHandle { writer, reader }| {
            let reader = Arc::new(SlowReader(reader, Arc::clone(&self.1)));
            ShardHandle { writer, reader }
        };
        async move { opened.await.map(slow) }.boxed()
    }
    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.0.read(shard)
    }
    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        self.0.view(projection)
    }
    fn take_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        self.0.take_view(projection)
    }
    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.save_view(projection, epoch, view)
    }
    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        self.0.catalog()
    }
    fn save_catalog(&self, entries: Vec<CatalogEntry>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.save_catalog(entries)
    }
    fn durability(&self) -> &'static str {
        self.0.durability()
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.close()
    }
}

impl ShardReader for SlowReader {
    fn position(&self) -> u64 {
        self.0.position()
    }
    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.0.load(actor, key)
    }
    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.0.history(actor, key)
    }
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.0.events(after, limit)
    }
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.0.outbox(to, after, limit)
    }
    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.0.outbox_heads()
    }
    fn watermarks(&self) -> Vec<Watermark> {
        self.0.watermarks()
    }
    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.0.timers_due(now, limit)
    }
    fn next_timer(&self) -> Option<Timestamp> {
        self.0.next_timer()
    }
    fn timers_of(&self, actor: &Name, after: TimerPlace, now: Timestamp, limit: usize) -> TimerPage {
        self.0.timers_of(actor, after, now, limit)
    }
    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.0.timer_counts()
    }
    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        async move {
            let letters = self.0.dead_letters(after, limit).await;
            if self.1.next.swap(false, Ordering::Relaxed) {
                self.1.reads.notify_one();
                self.1.go.notified().await;
            }
            letters
        }
        .boxed()
    }
    fn dead_letter_count(&self) -> u64 {
        self.0.dead_letter_count()
    }
    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.0.streams()
    }
}

/// A node with one dead letter: a charge that was tried three times.
async fn with_a_letter(world: &Arc<World>, hold: &Arc<Hold>) -> (Node, DeadLetter) {
    let store = SlowLetters(MemoryStore::new(), Arc::clone(hold));
    let node = Node::builder("shop", store)
        .threads(0)
        .worker(Charger(Arc::clone(world)))
        .retry(quick())
        .start()
        .await
        .unwrap();
    world.fails.store(usize::MAX, Ordering::Relaxed);
    node.client().send(charge("o1", 5)).await.unwrap_err();
    world.fails.store(0, Ordering::Relaxed);
    let letter = node.dead_letters().await.unwrap().remove(0);
    (node, letter)
}

#[whizbang::test]
async fn two_redrives_at_once_do_a_job_once() {
    let (world, hold) = (Arc::<World>::default(), Arc::<Hold>::default());
    let (node, letter) = with_a_letter(&world, &hold).await;
    hold.next.store(true, Ordering::Relaxed);
    let both = async {
        hold.reads.notified().await;
        node.redrive(&letter).await.unwrap();
        hold.go.notify_one();
    };
    let (slow, ()) = tokio::join!(node.redrive(&letter), both);
    slow.unwrap();
    assert_eq!(world.calls("o1").await.len(), 3 + 1);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn a_dead_letter_whose_job_is_under_way_is_neither_driven_again_nor_thrown_away() {
    let (world, hold) = (Arc::<World>::default(), Arc::<Hold>::default());
    let (node, letter) = with_a_letter(&world, &hold).await;
    world.holds.store(true, Ordering::Relaxed);
    let others = async {
        eventually(async || world.calls("o1").await.len() == 3 + 1).await;
        assert!(matches!(node.redrive(&letter).await, Err(SendError::Busy { .. })));
        assert!(matches!(node.discard(&letter).await, Err(SendError::Busy { .. })));
        world.release();
    };
    let (first, ()) = tokio::join!(node.redrive(&letter), others);
    first.unwrap();
    assert_eq!(world.calls("o1").await.len(), 3 + 1);
    assert!(matches!(node.discard(&letter).await, Err(SendError::Unhandled { .. })));
}
