//! Code on a thread of the store panics: the store stops and says so, or continues and reports it. No caller waits for ever.

use std::sync::Arc;
use std::time::Duration;

use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{Appended, Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};

use crate::contents::shard;
use crate::machine::{Kind, Machine};
use crate::workload::small;

/// A store with its threads, and the owner of one shard of it.
struct Open {
    store: Arc<dyn Store>,
    listener: Arc<RecordingListener>,
    owner: Owner,
    turns: u64,
}

impl Open {
    async fn on(machine: &Machine) -> Self {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap());
        let listener = Arc::new(RecordingListener::default());
        let owner = Owner::take_with(&store, &shard("bank", 0), Arc::clone(&listener)).await;
        Self { store, listener, owner, turns: 0 }
    }

    fn append(&mut self) -> Result<Appended, StoreError> {
        let turn = TurnBuilder::new("Account", "ada", self.turns);
        let turn = turn.at(self.turns + 1, self.turns).event("Happened", vec![1; 300]);
        self.owner.append(&turn).inspect(|_| self.turns += 1)
    }

    /// Appends turns until `holds`. Every one is committed, or rejected at once.
    async fn append_until(&mut self, holds: impl Fn(&Self) -> bool) {
        let begun = tokio::time::Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", self.store.issues());
            if let Ok(appended) = self.append() {
                self.listener.until(appended.ticket).await.unwrap();
            }
        }
    }
}

fn text(error: &StoreError) -> String {
    whizbang::error_chain(error).to_string()
}

#[test]
fn panic_of_the_log_writer_stops_the_store() {
    // On the thread of the store, and on that of the caller.
    let cases = [Kind::Write, Kind::SyncFile].into_iter().flat_map(|kind| [(kind, false), (kind, true)]);
    for (kind, alone) in cases {
        let machine = Machine::new(1);
        let committed = run(async {
            let mut open = Open::on(&machine).await;
            open.append_until(|open| open.turns == 3).await;
            machine.panics(kind, "log-");
            let turn = TurnBuilder::new("Account", "ada", 3).at(4, 3).event("Happened", vec![1; 300]);
            let appended = if alone { open.owner.append_alone(&turn) } else { open.owner.append(&turn) };
            let failed = match appended {
                Ok(appended) => open.listener.until(appended.ticket).await.unwrap_err(),
                Err(error) => error,
            };
            assert!(machine.has_panicked() && text(&failed).contains("panicked: planned: "), "{}", text(&failed));
            assert!(matches!(open.append(), Err(StoreError::Closed)));
            assert!(open.store.close().await.is_err());
            3
        });
        machine.kill();
        run(async {
            let mut open = Open::on(&machine).await;
            let stored = open.owner.reader.position();
            assert!(stored >= committed, "{stored}");
            open.turns = stored;
            open.append_until(|open| open.turns == stored + 1).await;
        });
    }
}

#[test]
fn panic_during_preallocation_is_followed_by_another_attempt() {
    let machine = Machine::new(2);
    run(async {
        let mut open = Open::on(&machine).await;
        machine.panics(Kind::Create, "log.new");
        open.append_until(|_| machine.has_panicked()).await;
        let turns = open.turns;
        open.append_until(|open| open.turns == turns + 100).await;
        assert_eq!(open.store.issues().len(), 0, "the next attempt has succeeded");
        open.store.close().await.unwrap();
    });
}

#[test]
fn panic_of_the_flusher_is_reported_and_its_work_continues() {
    let machine = Machine::new(3);
    run(async {
        let mut open = Open::on(&machine).await;
        machine.panics(Kind::Rename, "index-");
        open.append_until(|open| !open.store.issues().is_empty()).await;
        assert!(machine.has_panicked());
        let issue = text(&open.store.issues()[0]);
        assert!(issue.contains("checkpoints") && issue.contains("panicked: planned: Rename of index-"), "{issue}");
        open.append_until(|_| machine.files().keys().any(|name| name.starts_with("index-"))).await;
        open.store.close().await.unwrap();
    });
}
