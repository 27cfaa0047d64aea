use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Deposited {
    cents: u64,
}

#[derive(Saga, Default, Serialize, Deserialize)]
#[saga(domain = Web, reacts(Deposited), snapshot)]
struct Account {
    #[serde(skip)]
    cents: u64,
}

impl React<Deposited> for Account {
    fn react(&self, _: Deposited, _: &mut Effects<Self>) {}
}

fn main() {}
