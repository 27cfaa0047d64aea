//! A till that is filled: the smallest aggregate there is, in a domain of one shard.
#![allow(dead_code, unreachable_pub, missing_docs)]

use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "tills", shards = 1)]
pub struct Tills;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Tills)]
pub struct Put {
    #[key]
    pub till: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Tills)]
pub struct Filled {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Tills, handles(Put), applies(Filled))]
pub struct Till;

impl Handle<Put> for Till {
    fn handle(&self, _put: Put, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Filled {});
        Ok(())
    }
}

impl Apply<Filled> for Till {
    fn apply(&mut self, _filled: &Filled) {}
}

/// Fills a till.
pub fn put(till: &str) -> Put {
    Put { till: till.to_owned() }
}
