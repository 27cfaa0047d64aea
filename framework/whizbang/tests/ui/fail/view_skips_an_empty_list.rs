use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Deposited {
    cents: u64,
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited))]
struct Deposits {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cents: Vec<u64>,
}

impl Project<Deposited> for Deposits {
    fn project(&mut self, deposited: &Deposited, _: &EventContext) {
        self.cents.push(deposited.cents);
    }
}

fn main() {}
