use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

use std::sync::{Arc, Mutex};

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct Total {
    seen: Option<Arc<Mutex<u64>>>,
}

fn main() {}
