//! The store in PostgreSQL passes the suite that every store passes, directly and behind a pooler that changes the session with each
//! transaction.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use whizbang::store::Store;
use whizbang::testing::store::{Fixture, SharedFixture};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::{Pooler, PostgresServer};

async fn connect(url: String) -> Arc<dyn Store> {
    Arc::new(PostgresStore::connect(&url).await.expect("connects"))
}

struct Postgres(PostgresServer);

impl Fixture for Postgres {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        connect(self.0.url()).boxed()
    }
}

impl SharedFixture for Postgres {
    fn second(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        self.store()
    }
}

mod directly {
    use super::{Postgres, PostgresServer};

    whizbang::store_suite!(Postgres(PostgresServer::start()));
}

/// Saves a checkpoint as often as possible, so that every restart begins with one.
struct Saving(PostgresServer);

impl Fixture for Saving {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        async {
            let store = PostgresStore::builder(&self.0.url()).checkpoint_turns(1).connect().await.expect("connects");
            Arc::new(store) as Arc<dyn Store>
        }
        .boxed()
    }
}

mod with_checkpoints {
    use super::{PostgresServer, Saving};

    whizbang::store_suite!(Saving(PostgresServer::start()));
}

mod shared {
    use super::{Postgres, PostgresServer};

    whizbang::lease_suite!(Postgres(PostgresServer::start()));
}

struct Pooled {
    // Before the server: it is dropped first.
    pooler: Pooler,
    _server: PostgresServer,
}

impl Pooled {
    fn start() -> Self {
        let server = PostgresServer::start();
        Self { pooler: Pooler::start(&server), _server: server }
    }
}

impl Fixture for Pooled {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        connect(self.pooler.url()).boxed()
    }
}

impl SharedFixture for Pooled {
    fn second(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        self.store()
    }
}

mod behind_a_pooler {
    use super::Pooled;

    whizbang::store_suite!(Pooled::start());
}

mod shared_behind_a_pooler {
    use super::Pooled;

    whizbang::lease_suite!(Pooled::start());
}
