//! The memory of a move does not grow with the size of the store.

use std::sync::Arc;

use whizbang::message::{Name, ShardId};
use whizbang::store::Store;
use whizbang::testing::store::{Owner, TurnBuilder};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{brief_or_long, resident_mib};

use crate::{Place, move_between, open};

const PAYLOAD_BYTES: usize = 16 * 1024;

/// The growth of the resident memory that is allowed: windows, pages, and the buffers of both stores.
const LIMIT_MIB: u64 = 40;

#[whizbang::test]
async fn move_needs_little_memory_for_a_large_store() {
    let turns = brief_or_long(8_000, 64_000);
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = (folder.path().join("first"), folder.path().join("last"));
    let shard = ShardId::new(Name::new("bank").unwrap(), 0);
    {
        let store: Arc<dyn Store> = Arc::new(open(&first).unwrap());
        let mut owner = Owner::take(&store, &shard).await;
        let payload = "x".repeat(PAYLOAD_BYTES);
        for number in 1..=turns {
            let turn =
                TurnBuilder::new("account", &format!("key{number}"), number).event("Deposited", payload.as_str());
            match number % 64 {
                0 => drop(owner.commit(&turn).await),
                _ => drop(owner.append(&turn).unwrap()),
            }
        }
        drop(owner);
        store.close().await.unwrap();
    }
    let server = PostgresServer::start();
    let schema = Place::Schema(&server, "bank");
    for (from, to) in [(Place::Folder(&first), schema), (schema, Place::Folder(&last))] {
        let before = resident_mib();
        let mut most = before;
        let moved = move_between(from, to, |_| most = most.max(resident_mib())).await.unwrap();
        assert_eq!(moved.events, turns);
        let (grown, whole) = (most - before, turns * PAYLOAD_BYTES as u64 / 1024 / 1024);
        println!("{grown} MiB for a store of {whole} MiB");
        assert!(whole > 3 * LIMIT_MIB && grown < LIMIT_MIB, "{grown} MiB for a store of {whole} MiB");
    }
}
