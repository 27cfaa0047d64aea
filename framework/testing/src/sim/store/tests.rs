//! The suites of stores, on simulated stores.

use futures_util::future::BoxFuture;

use super::*;
use whizbang_conformance::store::Fixture;
use whizbang_conformance::store::SharedFixture;
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::store::Store;

struct Simulated(SimStore);

impl Simulated {
    fn with_backend(backend: impl FnOnce(&IdSource) -> Backend) -> Self {
        let rng = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
        let backend = backend(&rng);
        let (trace, log, counts) = (Trace::new(), StepLog::new(), FaultCounts::default());
        let store = SimStore::new("suite", rng, trace, log, counts, CrashPoints::default(), backend);
        store.set_max_delays(2, 2);
        Self(store)
    }
}

impl Fixture for Simulated {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        Box::pin(std::future::ready(Arc::new(self.0.clone()) as Arc<dyn Store>))
    }
}

/// Each instance is the connection of another node.
struct Leased(SimStore);

impl Leased {
    fn new() -> Self {
        let Simulated(store) = Simulated::with_backend(|_| Backend::shared(&Clock::system()));
        Self(store)
    }
}

impl Fixture for Leased {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        Box::pin(std::future::ready(Arc::new(self.0.new_handle()) as Arc<dyn Store>))
    }
}

impl SharedFixture for Leased {
    fn second(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        self.store()
    }
}

mod leased {
    use super::*;
    whizbang_conformance::lease_suite!(Leased::new());
}

mod shared {
    use super::*;
    whizbang_conformance::store_suite!(
        Leased::new(),
        without { shards_on_many_threads_are_independent: "a simulated cluster runs on one thread" }
    );
}

mod in_memory {
    use super::*;
    whizbang_conformance::store_suite!(
        Simulated::with_backend(|_| Backend::memory()),
        without { shards_on_many_threads_are_independent: "a simulated cluster runs on one thread" }
    );
}

#[cfg(feature = "embedded")]
mod on_disk {
    use super::*;
    whizbang_conformance::store_suite!(
        Simulated::with_backend(Backend::on_disk),
        without {
            largest_payload_is_stored: "a simulated disk has small segments, so that segment ends are reached often",
            shards_on_many_threads_are_independent: "a simulated cluster runs on one thread"
        }
    );
}
