//! A shard that is lost while the jobs of a worker that is exclusive by key enter their lines, and that comes back.

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::Notify;

use super::*;
use crate::derive::derives::Worker;
use crate::tests::pots::{Added, Pots};
use crate::worker::{Job, OnEvent, WorkError, WorkerOptions};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::MessageId;
use whizbang_core::store::{
    DeadLetter, OutboxEntry, ShardHandle, ShardReader, StoreError, StoredEvent, StoredTurn, StreamState, Timer,
    TimerCursor, TimerPage, Watermark,
};

/// Washes a pot for each number, unless all jobs hang.
#[derive(Worker)]
#[worker(domain = Pots, on(Added))]
struct Washer {
    washed: Arc<Mutex<Vec<u64>>>,
    hangs: Arc<AtomicBool>,
}

impl OnEvent<Added> for Washer {
    async fn on_event(&self, added: Added, _job: Job) -> Result<(), WorkError> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.washed.lock().push(added.nth);
        Ok(())
    }
}

/// A reader whose reads of dead letters wait until they are resumed.
struct PausedReader {
    reader: Arc<dyn ShardReader>,
    reads: Arc<Notify>,
    go: Arc<Notify>,
}

impl ShardReader for PausedReader {
    fn position(&self) -> u64 {
        self.reader.position()
    }
    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.reader.load(actor, key)
    }
    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        self.reader.history(actor, key)
    }
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.reader.events(after, limit)
    }
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.reader.outbox(to, after, limit)
    }
    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.reader.outbox_heads()
    }
    fn watermarks(&self) -> Vec<Watermark> {
        self.reader.watermarks()
    }
    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.reader.timers_due(now, limit)
    }
    fn next_timer(&self) -> Option<Timestamp> {
        self.reader.next_timer()
    }
    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.reader.timers_of(actor, after, now, limit)
    }
    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.reader.timer_counts()
    }
    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        async move {
            let letters = self.reader.dead_letters(after, limit).await;
            self.reads.notify_one();
            self.go.notified().await;
            // Later reads do not wait.
            self.go.notify_one();
            letters
        }
        .boxed()
    }
    fn dead_letter_count(&self) -> u64 {
        self.reader.dead_letter_count()
    }
    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.reader.streams()
    }
}

#[test]
fn shard_lost_while_its_lines_are_read_blocks_no_key() {
    run(async {
        let (store, hub) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new());
        let (washed, hangs) = (Arc::<Mutex<Vec<u64>>>::default(), Arc::new(AtomicBool::new(true)));
        let washer = Washer { washed: Arc::clone(&washed), hangs: Arc::clone(&hangs) };
        let node = builder(&store, &hub, 0).worker_with(washer, WorkerOptions::new().exclusive_by_key());
        let peer = Peer::start(node, &store, 1).await;
        let id = shard(shard_of(&pot(0), SHARDS));
        assert!(peer.open(&id).await);
        for nth in 1..=2 {
            assert_eq!(peer.node.client().send(Add { pot: pot(0), nth }).await.unwrap(), nth);
        }
        eventually("records of both jobs", async || {
            let reader = Arc::clone(peer.node.definition.readers.get(&id).unwrap().value());
            let recorded = reader.dead_letters(None, 9).await.unwrap().len();
            if recorded == 2 { Ok(()) } else { Err(format!("{recorded}")) }
        })
        .await;
        peer.lose(&id).await;
        // Lost again while the first of them is read.
        let (reads, go) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let paused = |ShardHandle { writer, reader }| {
            let reader = PausedReader { reader, reads: Arc::clone(&reads), go: Arc::clone(&go) };
            ShardHandle { writer, reader: Arc::new(reader) }
        };
        assert!(peer.open_with(&id, paused).await);
        reads.notified().await;
        peer.lose(&id).await;
        go.notify_one();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        hangs.store(false, Ordering::Relaxed);
        assert!(peer.open(&id).await);
        eventually("all jobs", async || match &washed.lock()[..] {
            [1, 2] => Ok(()),
            washed => Err(format!("{washed:?}")),
        })
        .await;
    });
}
