use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Audited {
    by: String,
}

fn audit<A: Aggregate + Apply<Audited>>(by: &str, effects: &mut Effects<A>) {
    effects.record(Audited { by: by.to_owned() });
}

fn main() {}
