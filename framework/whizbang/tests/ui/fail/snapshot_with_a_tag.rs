use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Deposited {
    cents: u64,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Web, reacts(Deposited), snapshot)]
#[serde(tag = "kind")]
enum Account {
    #[default]
    Open,
}

impl React<Deposited> for Account {
    fn react(&self, _: Deposited, _: &mut Effects<Self>) {}
}

fn main() {}
