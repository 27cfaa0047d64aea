//! Events whose shape changes.

use whizbang::node::NodeBuilder;
use whizbang::prelude::*;

use super::{refused, start};

program!(
    first,
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
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    swapped,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            to: u64,
            from: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1 }
            }
        }
    },
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    signed,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: i64,
            to: u64,
        }
        impl Paid {
            fn new(_: u64) -> Self {
                Self { from: 1, to: 1 }
            }
        }
    },
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    longer,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: u64,
            to: u64,
            #[serde(default)]
            memo: String,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1, memo: String::new() }
            }
        }
    },
    Paid,
    |paid| format!("{}>{}{} ", paid.from, paid.to, paid.memo)
);

program!(
    second,
    (name = "bank"),
    {
        #[event(domain = Bank, version = 2, upcast(1 = PaidV1))]
        pub struct Paid {
            to: u64,
            from: u64,
            memo: String,
        }
        #[derive(Deserialize)]
        pub struct PaidV1 {
            from: u64,
            to: u64,
        }
        impl From<PaidV1> for Paid {
            fn from(old: PaidV1) -> Self {
                Self { from: old.from, to: old.to, memo: "old".to_owned() }
            }
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1, memo: "new".to_owned() }
            }
        }
    },
    Paid,
    |paid| format!("{}>{} {} ", paid.from, paid.to, paid.memo)
);

program!(
    wrong_upcast,
    (name = "bank"),
    {
        #[event(domain = Bank, version = 2, upcast(1 = PaidV1))]
        pub struct Paid {
            to: u64,
        }
        #[derive(Deserialize)]
        pub struct PaidV1 {
            to: u64,
            from: u64,
        }
        impl From<PaidV1> for Paid {
            fn from(old: PaidV1) -> Self {
                Self { to: old.to.max(old.from) }
            }
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { to: cents }
            }
        }
    },
    Paid,
    |paid| paid.to.to_string()
);

/// A function that hosts a version of the program.
type Host = fn(NodeBuilder) -> NodeBuilder;

#[whizbang::test]
async fn changed_event_is_refused_at_start() {
    let store = ran!(first);
    let changes: [(Host, [&str; 2]); 4] = [
        (swapped::host, ["from: u64", "to: u64"]),
        (signed::host, ["was u64 in the store", "is i64 in"]),
        (longer::host, ["`memo` was nothing", "is text in"]),
        (wrong_upcast::host, ["from: u64", "to: u64"]),
    ];
    for (host, parts) in changes {
        let error = refused(&store, host).await;
        for part in ["the event `bank.Paid` has changed in version 1", "Paid`; raise `version` and add `upcast("] {
            assert!(error.contains(part), "{error}");
        }
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    // The refused start changed nothing.
    let node = start(store, first::host).await.unwrap();
    assert_eq!(first::pay(&node, 0).await.unwrap(), "250>1 ");
}

#[whizbang::test]
async fn higher_version_with_an_upcast_starts() {
    let store = ran!(first);
    let node = start(store.clone(), second::host).await.unwrap();
    assert_eq!(second::pay(&node, 7).await.unwrap(), "250>1 old ");
    assert_eq!(second::pay(&node, 0).await.unwrap(), "250>1 old 7>1 new ");
    node.stop().await.unwrap();
    let error = refused(&store, wrong_upcast::host).await;
    assert!(error.contains("the event `bank.Paid` has changed in version 1"), "{error}");
}

program!(
    up_down,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub enum Paid {
            Up(u64),
            Down(u64),
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                if cents.is_multiple_of(2) { Self::Up(cents) } else { Self::Down(cents) }
            }
        }
    },
    Paid,
    |paid| match paid {
        Paid::Up(cents) => format!("up {cents} "),
        Paid::Down(cents) => format!("down {cents} "),
    }
);

program!(
    jump_up_down,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub enum Paid {
            Jump(u64),
            Up(u64),
            Down(u64),
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self::Up(cents)
            }
        }
    },
    Paid,
    |paid| match paid {
        Paid::Jump(n) => format!("jump {n} "),
        Paid::Up(n) | Paid::Down(n) => format!("up {n} "),
    }
);

program!(
    up_down_jump,
    (name = "bank"),
    {
        #[event(domain = Bank)]
        pub enum Paid {
            Up(u64),
            Down(u64),
            Jump(u64),
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self::Jump(cents)
            }
        }
    },
    Paid,
    |paid| match paid {
        Paid::Jump(n) => format!("jump {n} "),
        Paid::Up(n) | Paid::Down(n) => format!("up {n} "),
    }
);

#[whizbang::test]
async fn variant_inserted_in_front_is_refused_but_not_appended() {
    let store = ran!(up_down);
    let error = refused(&store, jump_up_down::host).await;
    assert!(error.contains("`the variants` was Up in the store and is Jump in"), "{error}");
    let node = start(store.clone(), up_down_jump::host).await.unwrap();
    assert_eq!(up_down_jump::pay(&node, 3).await.unwrap(), "up 250 ");
    node.stop().await.unwrap();
    // The new variant is remembered, although the first program does not have it.
    drop(start(store.clone(), up_down::host).await.unwrap());
    let error = refused(&store, jump_up_down::host).await;
    assert!(error.contains("the variants"), "{error}");
}

program!(
    json,
    (name = "bank", codec = json),
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
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

program!(
    json_tolerant,
    (name = "bank", codec = json),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            memo: Option<String>,
            to: i64,
            #[serde(alias = "from")]
            sender: u32,
        }
        impl Paid {
            fn new(_: u64) -> Self {
                Self { memo: None, to: 1, sender: 1 }
            }
        }
    },
    Paid,
    |paid| format!("{}>{}{:?} ", paid.sender, paid.to, paid.memo)
);

program!(
    json_renamed,
    (name = "bank", codec = json),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            sender: Option<u64>,
            to: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { sender: Some(cents), to: 1 }
            }
        }
    },
    Paid,
    |paid| format!("{:?}>{} ", paid.sender, paid.to)
);

#[whizbang::test]
async fn json_event_may_change_its_order_and_gain_an_option() {
    let store = ran!(json);
    let error = refused(&store, json_renamed::host).await;
    assert!(error.contains("`from` was u64 in the store and is nothing in"), "{error}");
    let node = start(store.clone(), json_tolerant::host).await.unwrap();
    assert_eq!(json_tolerant::pay(&node, 0).await.unwrap(), "250>1None ");
    node.stop().await.unwrap();
    drop(start(store, json::host).await.expect("a rollback starts"));
}
