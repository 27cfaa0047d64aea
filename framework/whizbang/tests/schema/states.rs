//! Snapshots, views, timers and commands whose shape changes.

use whizbang::prelude::*;

use super::{refused, start};

program!(
    snapshot,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: u64,
            to: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1 }
            }
        }
    },
    {
        #[aggregate(domain = Bank, handles(Pay), applies(Paid), snapshot(every = 1))]
        pub struct Account {
            seen: String,
            high: u32,
            low: u32,
        }
    },
    Account,
    Paid,
    |paid| paid.from.to_string()
);

program!(
    snapshot_swapped,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: u64,
            to: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1 }
            }
        }
    },
    {
        #[aggregate(domain = Bank, handles(Pay), applies(Paid), snapshot(every = 1))]
        pub struct Account {
            seen: String,
            low: u32,
            high: u32,
        }
    },
    Account,
    Paid,
    |paid| paid.from.to_string()
);

program!(
    snapshot_raised,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: u64,
            to: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1 }
            }
        }
    },
    {
        #[aggregate(domain = Bank, handles(Pay), applies(Paid), snapshot(every = 1, schema = 2))]
        pub struct Account {
            seen: String,
            low: u32,
            high: u32,
        }
    },
    Account,
    Paid,
    |paid| paid.from.to_string()
);

#[whizbang::test]
async fn changed_snapshot_is_refused_at_start() {
    let store = ran!(snapshot);
    let error = refused(&store, snapshot_swapped::host).await;
    for part in
        ["the snapshot `bank.account`", "`high` was high: u32", "is low: u32", "raise `schema` in its `snapshot("]
    {
        assert!(error.contains(part), "{error}");
    }
    let node = start(store, snapshot_raised::host).await.unwrap();
    assert_eq!(snapshot_raised::pay(&node, 0).await.unwrap(), "250");
}

parts!(parts_first, Ring, [#[document(domain = Bank)] pub struct Ring { n: u64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings))] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Ring))] pub struct Clockwork { rings: u64 }]);
parts!(timer_changed, Ring, [#[document(domain = Bank)] pub struct Ring { n: i64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings))] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Ring))] pub struct Clockwork { rings: u64 }]);
parts!(command_changed, Ring, [#[document(domain = Bank)] pub struct Ring { n: u64 }], [cents: i64],
    [#[projection(projects(Rang), answers(Rings))] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Ring))] pub struct Clockwork { rings: u64 }]);
parts!(view_changed, Ring, [#[document(domain = Bank)] pub struct Ring { n: u64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings))] pub struct Log { rings: u64, since: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Ring))] pub struct Clockwork { rings: u64 }]);

#[whizbang::test]
async fn changed_command_timer_and_view_are_refused() {
    let store = MemoryStore::new();
    let node = start(store.clone(), parts_first::host).await.unwrap();
    assert_eq!(parts_first::pay(&node, 1).await.unwrap(), 0);
    node.stop().await.unwrap();
    let error = refused(&store, timer_changed::host).await;
    assert!(error.contains("the timer `bank/clockwork.Ring` has changed in version 1: `n` was u64"), "{error}");
    let error = refused(&store, command_changed::host).await;
    assert!(error.contains("the command `bank.PayByClock` has changed in version 1: `cents` was u64"), "{error}");
    let error = refused(&store, view_changed::host).await;
    assert!(error.contains("the view `bank.log` has changed in version 1: `since` was nothing"), "{error}");
    assert!(error.contains("raise its `schema`"), "{error}");
}

/// A command with the reply type of one program.
macro_rules! replying {
    ($program:ident, version = $version:literal $(, upcast = $upcast:ident)?; $reply:ty) => {
        pub mod $program {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "bank")]
            pub struct Bank;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Bank, reply = $reply, version = $version $(, upcast(1 = $upcast))?)]
            pub struct Ask {
                #[key]
                account: String,
            }

            $(#[derive(Deserialize)]
            pub struct $upcast {
                account: String,
            }

            impl From<$upcast> for Ask {
                fn from(old: $upcast) -> Self {
                    Self { account: old.account }
                }
            })?

            #[derive(Aggregate, Default)]
            #[aggregate(domain = Bank, handles(Ask))]
            pub struct Account {}

            impl Handle<Ask> for Account {
                fn handle(&self, _: Ask, _: &mut Effects<Self>) -> Result<$reply, Rejection> {
                    Ok(<$reply>::default())
                }
            }

            pub fn host(builder: whizbang::node::NodeBuilder) -> whizbang::node::NodeBuilder {
                builder.aggregate::<Account>()
            }
        }
    };
}

replying!(unsigned, version = 1; u64);
replying!(signed, version = 1; i64);
replying!(newer, version = 2, upcast = AskV1; i64);

#[whizbang::test]
async fn changed_reply_is_refused_at_start() {
    let store = MemoryStore::new();
    start(store.clone(), unsigned::host).await.unwrap().stop().await.unwrap();
    let text = refused(&store, signed::host).await;
    for part in ["reply", "`bank.Ask`", "u64", "i64", "raise the command's `version`"] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    start(store.clone(), newer::host).await.unwrap().stop().await.unwrap();
    start(store, newer::host).await.unwrap().stop().await.unwrap();
}
