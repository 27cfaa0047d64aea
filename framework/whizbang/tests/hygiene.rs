//! The derives in programs that are written otherwise than the examples: by macros, with retired items, with names that the
//! output might clash with, under lints that may not be allowed, and with the framework at another place.

#![deny(warnings)]
#![forbid(missing_docs, unreachable_pub, dead_code)]

/// The domain of all.
mod bank {
    use whizbang::prelude::*;

    #[derive(Domain)]
    pub(crate) struct Bank;
}

/// Messages and actors that macros by example write, from types and names of their caller.
mod by_example {
    use whizbang::message::{Codec, Message};
    use whizbang::prelude::*;

    use super::bank::Bank;

    #[derive(Serialize, Deserialize)]
    struct Old {
        cents: u64,
    }

    macro_rules! event {
        ($name:ident, $old:ident, $domain:ty, $version:literal) => {
            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = $domain, version = $version, upcast(1 = $old))]
            struct $name {
                cents: u64,
            }

            impl From<$old> for $name {
                fn from(old: $old) -> Self {
                    Self { cents: old.cents }
                }
            }
        };
    }

    macro_rules! command {
        ($name:ident, $old:ty, $domain:path, $key:ty, $reply:ty) => {
            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = $domain, reply = $reply, version = 2, upcast(1 = $old))]
            struct $name {
                #[key]
                key: $key,
            }

            impl From<$old> for $name {
                fn from(old: $old) -> Self {
                    Self { key: old.cents }
                }
            }
        };
    }

    macro_rules! aggregate {
        ($name:ident, $domain:ty, handles $($command:ty),*; applies $($event:path),*) => {
            #[derive(Aggregate, Default)]
            #[aggregate(domain = $domain, handles($($command),*), applies($($event),*))]
            struct $name;

            $(impl Handle<$command> for $name {
                fn handle(&self, command: $command, _: &mut Effects<Self>) -> Result<u64, Rejection> {
                    Ok(command.key)
                }
            })*
            $(impl Apply<$event> for $name {
                fn apply(&mut self, event: &$event) {
                    let _ = event.cents;
                }
            })*
        };
    }

    event!(Deposited, Old, Bank, 2);
    event!(Withdrawn, Old, (Bank), 2);
    command!(Deposit, Old, Bank, u64, u64);
    command!(Withdraw, Old, crate::bank::Bank, u64, u64);
    aggregate!(Account, Bank, handles Deposit, Withdraw; applies Deposited, Withdrawn);

    #[whizbang::test]
    async fn messages_written_by_macros_are_handled_and_upcast() {
        let mut bytes = Vec::new();
        Codec::Bincode.encode(&Old { cents: 7 }, &mut bytes).unwrap();
        assert_eq!(Deposited::decode(1, Codec::Bincode, &bytes).unwrap().cents, 7);
        assert_eq!(Withdrawn::decode(1, Codec::Bincode, &bytes).unwrap().cents, 7);
        assert_eq!(Withdraw::decode(1, Codec::Bincode, &bytes).unwrap().key, 7);
        let node = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().start().await.unwrap();
        assert_eq!(node.client().send(Deposit { key: 3 }).await.unwrap(), 3);
        node.stop().await.unwrap();
    }
}

/// Retired items, which are still stored and listed.
mod retired {
    use whizbang::prelude::*;

    use super::bank::Bank;

    #[deprecated = "use `Deposit`"]
    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Bank, reply = u64)]
    struct Pay {
        #[key]
        account: u64,
    }

    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Bank, reply = u64)]
    struct Deposit {
        #[key]
        #[deprecated]
        account: u64,
    }

    #[deprecated]
    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Bank)]
    enum Paid {
        #[deprecated]
        InCoins(u64),
        InNotes {
            #[deprecated]
            cents: u64,
        },
    }

    #[deprecated]
    #[derive(Domain)]
    struct Mint;

    #[allow(deprecated, reason = "older programs still send it")]
    #[derive(Aggregate, Default, Serialize, Deserialize)]
    #[aggregate(domain = Bank, handles(Pay, Deposit), records(Paid), snapshot)]
    struct Wallet {
        #[deprecated]
        cents: u64,
    }

    #[allow(deprecated)]
    impl Handle<Pay> for Wallet {
        fn handle(&self, pay: Pay, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            effects.record(Paid::InCoins(pay.account));
            effects.record(Paid::InNotes { cents: self.cents });
            Ok(pay.account)
        }
    }

    #[allow(deprecated)]
    impl Handle<Deposit> for Wallet {
        fn handle(&self, deposit: Deposit, _: &mut Effects<Self>) -> Result<u64, Rejection> {
            Ok(deposit.account)
        }
    }

    #[whizbang::test]
    #[allow(deprecated)]
    async fn retired_messages_are_handled_without_a_warning() {
        assert_eq!(<Mint as whizbang::Domain>::NAME, "mint");
        let _ = Mint;
        let node = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Wallet>().start().await.unwrap();
        assert_eq!(node.client().send(Pay { account: 3 }).await.unwrap(), 3);
        assert_eq!(node.client().send(Deposit { account: 4 }).await.unwrap(), 4);
        node.stop().await.unwrap();
    }
}

/// Names of the program that the output might mean its own things with.
#[allow(non_upper_case_globals, non_camel_case_types)]
mod lower_case {
    use whizbang::message::{Codec, Message};
    use whizbang::prelude::*;

    use super::bank::Bank;

    const found: u32 = 1;
    const codec: u8 = 1;
    const bytes: u8 = 1;
    const into: u8 = 1;
    const version: u8 = 1;
    struct plan;

    #[derive(Serialize, Deserialize)]
    struct Old;

    impl From<Old> for Opened {
        fn from(_: Old) -> Self {
            Self { at: found + u32::from(codec + bytes + into + version) }
        }
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Bank, version = 2, upcast(1 = Old))]
    struct Opened {
        at: u32,
    }

    #[derive(Saga, Default, Serialize, Deserialize)]
    #[saga(domain = Bank, reacts(Opened), applies(Opened), snapshot)]
    struct Follow(u32);

    impl React<Opened> for Follow {
        fn react(&self, _: Opened, _: &mut Effects<Self>) {}
    }

    impl Apply<Opened> for Follow {
        fn apply(&mut self, opened: &Opened) {
            self.0 = opened.at;
        }
    }

    #[test]
    fn constants_of_the_program_are_not_patterns_of_the_output() {
        let _ = plan;
        assert_eq!(Opened::decode(1, Codec::Bincode, &[]).unwrap().at, 5);
        let mut follow = Follow::default();
        follow.apply(&Opened { at: 9 });
        assert_eq!(follow.0, 9);
    }
}

/// Types of the program with the names of primitive ones. serde's own derives cannot do with all of them.
#[allow(non_camel_case_types)]
mod primitives {
    use whizbang::prelude::*;

    struct u16;
    struct u32;

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = without_serde::Post)]
    struct Sent {
        cents: i8,
    }

    #[derive(Saga, Default, Serialize, Deserialize)]
    #[saga(domain = without_serde::Post, reacts(Sent), applies(Sent), snapshot(every = 3, schema = 2))]
    struct Follow {
        cents: i8,
    }

    impl React<Sent> for Follow {
        fn react(&self, _: Sent, _: &mut Effects<Self>) {}
    }

    impl Apply<Sent> for Follow {
        fn apply(&mut self, sent: &Sent) {
            self.cents += sent.cents;
        }
    }

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Sent), schema = 2)]
    struct Totals {
        cents: i8,
    }

    impl Project<Sent> for Totals {
        fn project(&mut self, sent: &Sent, _: &EventContext) {
            self.cents += sent.cents;
        }
    }

    mod without_serde {
        use whizbang::prelude::*;

        use super::Sent;

        struct str;
        struct u8;
        struct u16;
        struct usize;

        #[derive(Domain)]
        #[domain(shards = 3)]
        pub(super) struct Post;

        #[derive(Aggregate, Default)]
        #[aggregate(domain = Post, reacts(Sent))]
        pub(super) struct Box {
            full: bool,
        }

        impl React<Sent> for Box {
            fn react(&self, _: Sent, _: &mut Effects<Self>) {
                let _ = self.full;
            }
        }

        #[derive(Worker)]
        #[worker(domain = Post, on(Sent))]
        pub(super) struct Clerk;

        impl OnEvent<Sent> for Clerk {
            async fn on_event(&self, _: Sent, _: Job) -> Result<(), WorkError> {
                let _ = (str, u8, u16, usize);
                Ok(())
            }
        }
    }

    #[whizbang::test]
    async fn types_of_the_program_are_not_taken_for_primitive_ones() {
        let _ = (u16, u32);
        let builder =
            Node::builder("post", MemoryStore::new()).threads(0).saga::<Follow>().aggregate::<without_serde::Box>();
        let builder = builder.projection::<Totals>().worker(without_serde::Clerk);
        builder.start().await.unwrap().stop().await.unwrap();
    }
}

/// A program that has the framework from a facade.
mod at_another_place {
    /// What the facade exports.
    mod facade {
        pub(crate) use ::whizbang as parts;
    }

    /// Hides the framework: whatever does not go through the facade does not compile.
    mod program {
        use super::facade;
        use super::facade::parts::prelude::*;

        #[derive(Domain)]
        #[whizbang(crate = facade::parts)]
        struct Bank;

        #[derive(Command, Serialize, Deserialize)]
        #[whizbang(crate = facade::parts)]
        #[command(domain = Bank, reply = u64)]
        struct Deposit {
            #[key]
            account: String,
            part: Part,
        }

        #[derive(Default, Serialize, Deserialize)]
        #[whizbang(crate = facade::parts)]
        #[serde(default, rename_all = "camelCase")]
        struct Part {
            cents: u64,
        }

        #[derive(Aggregate, Default)]
        #[whizbang(crate = facade::parts)]
        #[aggregate(domain = Bank, handles(Deposit))]
        struct Account;

        impl Handle<Deposit> for Account {
            fn handle(&self, deposit: Deposit, _: &mut Effects<Self>) -> Result<u64, Rejection> {
                Ok(deposit.part.cents)
            }
        }

        #[facade::parts::test(crate = facade::parts)]
        async fn program_with_a_facade_runs() {
            let node =
                Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().start().await.unwrap();
            let deposit = Deposit { account: "ada".to_owned(), part: Part { cents: 5 } };
            assert_eq!(node.client().send(deposit).await.unwrap(), 5);
            node.stop().await.unwrap();
        }
    }
}

/// What is public needs its documentation, and the output needs none.
mod documented {
    use whizbang::prelude::*;

    use super::bank::Bank;

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Bank)]
    pub(crate) struct Seen {
        pub(crate) page: Page<u8>,
    }

    #[derive(Serialize, Deserialize)]
    pub(crate) struct Page<T> {
        #[serde(default)]
        pub(crate) lines: Vec<T>,
    }

    #[derive(Aggregate, Default)]
    #[aggregate(domain = Bank, reacts(Seen), records(Seen))]
    pub(crate) struct Reader;

    impl React<Seen> for Reader {
        fn react(&self, seen: Seen, effects: &mut Effects<Self>) {
            effects.record(Seen { page: Page { lines: seen.page.lines } });
        }
    }

    #[whizbang::test]
    async fn output_needs_no_lint_allowed() {
        Node::builder("bank", MemoryStore::new())
            .threads(0)
            .aggregate::<Reader>()
            .start()
            .await
            .unwrap()
            .stop()
            .await
            .unwrap();
    }
}

/// Keys of other types than `String`.
mod keys {
    use std::borrow::Cow;
    use std::num::{NonZeroI8, NonZeroU128};
    use std::sync::Arc;

    use whizbang::prelude::*;

    use super::bank::Bank;

    macro_rules! keyed {
        ($($name:ident: $key:ty = $value:expr, $text:literal;)*) => {
            $(#[derive(Command, Serialize, Deserialize)]
            #[command(domain = Bank)]
            struct $name(#[key] $key);)*

            #[test]
            fn key_is_text_or_a_number() {
                $(assert_eq!($name($value).key().as_str(), $text);)*
            }
        };
    }

    keyed! {
        Boxed: Box<str> = "a".into(), "a";
        Shared: Arc<str> = "b".into(), "b";
        Owned: Cow<'static, str> = "c".into(), "c";
        Large: NonZeroU128 = NonZeroU128::MAX, "340282366920938463463374607431768211455";
        Small: NonZeroI8 = NonZeroI8::MIN, "-128";
    }
}
