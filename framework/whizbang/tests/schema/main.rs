//! Types that change between two starts of a node. A start that would read stored bytes as another type, or lose data
//! stored under another name, is refused.

#![allow(
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "the programs in here are written as their users write them"
)]

#[path = "../eventually/mod.rs"]
mod eventually;

use whizbang::Retry;
use whizbang::StartError;
use whizbang::node::NodeBuilder;
use whizbang::prelude::*;
use whizbang::store::Store;

/// A program: one aggregate that keeps the text of its events, and the parts that differ.
macro_rules! program {
    ($program:ident, $domain:tt, { $($event:tt)* }, { $($account:tt)* }, $Account:ident, $Paid:ident, $apply:expr) => {
        pub mod $program {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain $domain]
            pub struct Bank;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Bank, reply = String)]
            pub struct Pay {
                #[key]
                pub account: String,
                pub cents: u64,
            }

            #[derive(Event, Serialize, Deserialize)]
            $($event)*

            #[derive(Aggregate, Default, Serialize, Deserialize)]
            $($account)*

            impl Handle<Pay> for $Account {
                fn handle(&self, pay: Pay, effects: &mut Effects<Self>) -> Result<String, Rejection> {
                    if pay.cents > 0 {
                        effects.record($Paid::new(pay.cents));
                    }
                    Ok(self.seen.clone())
                }
            }

            impl Apply<$Paid> for $Account {
                fn apply(&mut self, paid: &$Paid) {
                    let text: fn(&$Paid) -> String = $apply;
                    self.seen.push_str(&text(paid));
                }
            }

            #[derive(Projection, Default, Serialize, Deserialize)]
            #[projection(projects($Paid))]
            #[allow(dead_code)]
            pub struct Unused {}

            impl Project<$Paid> for Unused {
                fn project(&mut self, _: &$Paid, _: &EventContext) {}
            }

            pub fn host(builder: whizbang::node::NodeBuilder) -> whizbang::node::NodeBuilder {
                builder.aggregate::<$Account>()
            }

            #[allow(dead_code)]
            pub async fn pay(node: &Node, cents: u64) -> Result<String, whizbang::SendError> {
                node.client().send(Pay { account: "ada".into(), cents }).await
            }
        }
    };
    // With the default aggregate.
    ($program:ident, $domain:tt, { $($event:tt)* }, $Paid:ident, $apply:expr) => {
        program!($program, $domain, { $($event)* }, {
            #[aggregate(domain = Bank, handles(Pay), applies($Paid))]
            pub struct Account {
                seen: String,
            }
        }, Account, $Paid, $apply);
    };
}

async fn start(store: impl Store, host: fn(NodeBuilder) -> NodeBuilder) -> Result<Node, StartError> {
    host(Node::builder("bank", store).threads(0)).retry(Retry::NEVER).start().await
}

/// Runs a program once on a new store, which then holds an event.
macro_rules! ran {
    ($program:ident) => {{
        let store = MemoryStore::new();
        let node = start(store.clone(), $program::host).await.unwrap();
        $program::pay(&node, 250).await.unwrap();
        node.stop().await.unwrap();
        store
    }};
}

/// Returns the error of a start of another program.
async fn refused(store: &MemoryStore, host: fn(NodeBuilder) -> NodeBuilder) -> String {
    match start(store.clone(), host).await {
        Ok(_) => panic!("the start was not refused"),
        Err(error) => error.to_string(),
    }
}

/// A command, a timer and a view that change.
macro_rules! parts {
    ($program:ident, $Ring:ident, [$($ring:tt)*], [$($pay:tt)*], [$($view:tt)*], [$($saga:tt)*]) => {
        pub mod $program {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "bank")]
            pub struct Bank;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Bank, reply = u64, name = "PayByClock")]
            pub struct Pay { #[key] account: String, $($pay)* }

            #[derive(Document, Serialize, Deserialize)]
            $($ring)*

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Bank)]
            pub struct Rang {}

            #[derive(Query, Serialize, Deserialize)]
            #[query(domain = Bank, reply = u64)]
            pub struct Rings {}

            #[derive(Projection, Default, Serialize, Deserialize)]
            $($view)*

            impl Project<Rang> for Log {
                fn project(&mut self, _: &Rang, _: &EventContext) { self.rings += 1; }
            }
            impl Answer<Rings> for Log {
                fn answer(&self, _: Rings) -> u64 { self.rings }
            }

            #[derive(Saga, Default)]
            $($saga)*

            impl Handle<Pay> for Clockwork {
                fn handle(&self, pay: Pay, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                    assert_ne!(pay.cents, 13, "thirteen");
                    if pay.cents == 1 {
                        effects.set_timer(&$Ring { n: 7 }, std::time::Duration::from_secs(60));
                    }
                    Ok(self.rings)
                }
            }
            impl Apply<Rang> for Clockwork {
                fn apply(&mut self, _: &Rang) { self.rings += 1; }
            }
            impl OnTimer<$Ring> for Clockwork {
                fn on_timer(&self, ring: $Ring, effects: &mut Effects<Self>) {
                    assert_eq!(ring.n, 7);
                    effects.record(Rang {});
                }
            }

            pub fn host(builder: whizbang::node::NodeBuilder) -> whizbang::node::NodeBuilder {
                builder.saga::<Clockwork>().projection::<Log>()
            }

            #[allow(dead_code)]
            pub async fn pay(node: &Node, cents: u64) -> Result<u64, whizbang::SendError> {
                node.client().send(Pay { account: "ada".into(), cents: cents.try_into().unwrap() }).await
            }
        }
    };
}

mod names;
mod renames;
mod shapes;
mod split;
mod states;
