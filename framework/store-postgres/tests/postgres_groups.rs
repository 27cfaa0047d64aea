//! Groups of rows that waited for the server.

use std::sync::Arc;

use whizbang::message::{Name, ShardId};
use whizbang::store::{Source, SourceKind, Store, Watermark};
use whizbang::testing::store::{Owner, TurnBuilder, run};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::PostgresServer;

fn shard(domain: &str) -> ShardId {
    ShardId::new(Name::new(domain).unwrap(), 0)
}

#[test]
fn several_steps_of_one_source_are_committed_together() {
    let server = PostgresServer::start();
    run(async {
        let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&server.url()).await.unwrap());
        let mut owner = Owner::take(&store, &shard("bank")).await;
        owner.commit(&TurnBuilder::new("Account", "ada", 1).at(1, 0).event("Happened", "1".to_owned())).await;
        let source = |domain| Source { shard: shard(domain), kind: SourceKind::Direct };
        server.pause();
        let mut last = None;
        for through in 1..=50 {
            for domain in ["orders", "payments"] {
                last = Some(owner.writer.advance(&Watermark { source: source(domain), through }).unwrap());
            }
        }
        server.resume();
        owner.settled(last.unwrap()).await;
        for domain in ["orders", "payments"] {
            assert_eq!(owner.reader.watermark(&source(domain)), 50);
        }
        store.close().await.unwrap();
        let store: Arc<dyn Store> = Arc::new(PostgresStore::connect(&server.url()).await.unwrap());
        let owner = Owner::take(&store, &shard("bank")).await;
        assert_eq!(owner.reader.watermark(&source("orders")), 50);
    });
}
