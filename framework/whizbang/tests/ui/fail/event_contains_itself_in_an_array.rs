use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
enum Tree {
    Leaf,
    Kids([Box<self::Tree>; 2]),
}

fn main() {}
