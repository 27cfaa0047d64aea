use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Tree {
    kids: Vec<(std::marker::PhantomData<u8>, Tree)>,
}

fn main() {}
