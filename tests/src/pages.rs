//! The pages of the documentation whose Rust blocks are compiled and run as doctests of this crate.
//!
//! Read by rustdoc alone. The examples use the crate `bank_fixture`. The list is not in the framework, because some pages use crates that only the tests depend on.
//! `tests/tests/tidy/book.rs` checks that no page with a Rust block is missing.

macro_rules! pages {
    ($($name:ident = $path:literal,)*) => {
        $(
            #[doc = include_str!(concat!("../../", $path))]
            struct $name;
        )*
    };
}

pages! {
    Readme = "README.md",
    ReadmeOfTheCrate = "framework/whizbang/README.md",
    GettingStartedHello = "docs/getting-started/hello.md",
    GettingStartedHttp = "docs/getting-started/http.md",
    GettingStartedDisk = "docs/getting-started/disk.md",
    GettingStartedNats = "docs/getting-started/nats.md",
    GettingStartedSaga = "docs/getting-started/saga.md",
    ConceptAggregate = "docs/concepts/aggregate.md",
    ConceptSaga = "docs/concepts/saga.md",
    ConceptProjection = "docs/concepts/projection.md",
    ConceptWorker = "docs/concepts/worker.md",
    ConceptShards = "docs/concepts/shards.md",
    RepeatRequests = "docs/how-to/repeat-requests.md",
    CallExternalServices = "docs/how-to/call-external-services.md",
    LimitWorkers = "docs/how-to/limit-workers.md",
    HandleBatches = "docs/how-to/handle-batches.md",
    RunSeveralNodes = "docs/how-to/run-several-nodes.md",
    MoveAStore = "docs/how-to/move-a-store.md",
    UpgradeWithoutDowntime = "docs/how-to/upgrade-without-downtime.md",
    PublishEvents = "docs/how-to/publish-events.md",
    SubscribeInCode = "docs/how-to/subscribe-in-code.md",
    PassHeaders = "docs/how-to/pass-headers.md",
    AddLayers = "docs/how-to/add-layers.md",
    ScheduleMessages = "docs/how-to/schedule-messages.md",
    ExpireMessages = "docs/how-to/expire-messages.md",
    ExportMetrics = "docs/how-to/export-metrics.md",
    Running = "docs/running.md",
    SchemaChanges = "docs/schema-changes.md",
    Postgres = "docs/postgres.md",
}
