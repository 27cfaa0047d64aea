//! Events and actor types whose names change.

use whizbang::StartError;
use whizbang::prelude::*;

use super::shapes::first;
use super::states::parts_first;
use super::{refused, start};

program!(
    renamed,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Settled {
            from: u64,
            to: u64,
        }
        impl Settled {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 2 }
            }
        }
    },
    Settled,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    renamed_formerly,
    (name = "bank"),
    {
        #[event(domain = Bank, formerly = "Paid")]
        pub struct Settled {
            from: u64,
            to: u64,
        }
        impl Settled {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 2 }
            }
        }
    },
    Settled,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    renamed_changed,
    (name = "bank"),
    {
        #[event(domain = Bank, formerly("Paid", "Moved"))]
        pub struct Settled {
            from: u64,
            to: i64,
        }
        impl Settled {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 2 }
            }
        }
    },
    Settled,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    renamed_retired,
    (name = "bank", retired("Paid")),
    {
        #[event(domain = Bank)]
        pub struct Settled {
            from: u64,
            to: u64,
        }
        impl Settled {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 2 }
            }
        }
    },
    Settled,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

#[whizbang::test]
async fn renamed_event_is_refused_until_it_is_declared() {
    let store = ran!(first);
    let error = refused(&store, renamed::host).await;
    for part in ["the event `bank.Paid`, which this program does not know", "formerly = ", "retired("] {
        assert!(error.contains(part), "{error}");
    }
    let error = refused(&store, renamed_changed::host).await;
    assert!(error.contains("the event `bank.Paid` has changed in version 1: `to` was u64"), "{error}");

    let node = start(store.clone(), renamed_formerly::host).await.unwrap();
    assert_eq!(renamed_formerly::pay(&node, 3).await.unwrap(), "250>1 ");
    assert_eq!(renamed_formerly::pay(&node, 0).await.unwrap(), "250>1 3>2 ");
    node.stop().await.unwrap();

    let node = start(store.clone(), renamed_retired::host).await.unwrap();
    assert_eq!(renamed_retired::pay(&node, 0).await.unwrap(), "3>2 ", "what is retired is not applied");
    node.stop().await.unwrap();
    let error = refused(&store, first::host).await;
    assert!(error.contains("the event `bank.Settled`"), "{error}");
}

#[whizbang::test]
async fn unused_name_may_be_removed() {
    let store = MemoryStore::new();
    start(store.clone(), first::host).await.unwrap().stop().await.unwrap();
    start(store.clone(), renamed::host).await.unwrap().stop().await.unwrap();
    start(store.clone(), parts_first::host).await.unwrap().stop().await.unwrap();
    drop(start(store, first::host).await.unwrap());
}

#[cfg(feature = "embedded")]
#[whizbang::test]
async fn unknown_event_of_a_store_without_catalog_is_no_skip() {
    let folder = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(folder.path()).unwrap();
    let node = start(open(), first::host).await.unwrap();
    first::pay(&node, 250).await.unwrap();
    node.stop().await.unwrap();
    let catalog = folder.path().join("catalog");
    let readable = std::fs::read(&catalog).unwrap();
    assert!(String::from_utf8_lossy(&readable).contains("Paid"));
    // As an older version left it.
    std::fs::remove_file(&catalog).unwrap();
    let node = start(open(), renamed::host).await.unwrap();
    let error = renamed::pay(&node, 0).await.unwrap_err();
    let cause = whizbang::error_chain(&error).to_string();
    assert!(cause.contains("the stored event `Paid` is unknown: declare `formerly"), "{cause}");
    node.stop().await.unwrap();
    // The first start saves what it finds in the catalog; the event is not yet in it.
    let node = start(open(), renamed_formerly::host).await.unwrap();
    assert_eq!(renamed_formerly::pay(&node, 0).await.unwrap(), "250>1 ");
    node.stop().await.unwrap();
    // A damaged catalog is reported and not treated as missing.
    std::fs::write(&catalog, &readable[..readable.len() - 1]).unwrap();
    let error = start(open(), renamed_formerly::host).await.unwrap_err();
    assert!(matches!(error, StartError::Store(whizbang::store::StoreError::Corrupt { .. })), "{error}");
}

program!(
    moved,
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
        #[aggregate(domain = Bank, handles(Pay), applies(Paid))]
        pub struct Wallet {
            seen: String,
        }
    },
    Wallet,
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    moved_formerly,
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
        #[aggregate(domain = Bank, handles(Pay), applies(Paid), formerly("purse", "account"))]
        pub struct Wallet {
            seen: String,
        }
    },
    Wallet,
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    purse,
    (name = "bank", retired("account")),
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
        #[aggregate(domain = Bank, handles(Pay), applies(Paid))]
        pub struct Purse {
            seen: String,
        }
    },
    Purse,
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

#[whizbang::test]
async fn renamed_aggregate_is_refused_until_it_is_declared() {
    let store = ran!(first);
    let error = refused(&store, moved::host).await;
    assert!(error.contains("the actor `bank.account`, which this program does not know"), "{error}");
    let node = start(store.clone(), moved_formerly::host).await.unwrap();
    assert_eq!(moved_formerly::pay(&node, 3).await.unwrap(), "250>1 ");
    node.stop().await.unwrap();
    // The stream keeps its original name, so both programs can continue it.
    let node = start(store.clone(), first::host).await.unwrap();
    assert_eq!(first::pay(&node, 0).await.unwrap(), "250>1 3>1 ");
    node.stop().await.unwrap();
    // Two types with streams of their own cannot be merged.
    let node = start(store.clone(), purse::host).await.unwrap();
    assert_eq!(purse::pay(&node, 9).await.unwrap(), "");
    node.stop().await.unwrap();
    let error = start(store, moved_formerly::host).await.unwrap_err();
    assert!(matches!(&error, StartError::TwoFormer { .. }), "{error}");
}

#[cfg(feature = "embedded")]
#[whizbang::test]
async fn renamed_aggregate_of_a_store_without_catalog_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let open = || EmbeddedStore::open(folder.path()).unwrap();
    let node = start(open(), first::host).await.unwrap();
    first::pay(&node, 250).await.unwrap();
    node.stop().await.unwrap();
    std::fs::remove_file(folder.path().join("catalog")).unwrap();
    let error = start(open(), moved::host).await.unwrap_err().to_string();
    assert!(error.contains("the actor `bank.account`"), "{error}");
    let node = start(open(), moved_formerly::host).await.unwrap();
    assert_eq!(moved_formerly::pay(&node, 0).await.unwrap(), "250>1 ");
    node.stop().await.unwrap();
}
