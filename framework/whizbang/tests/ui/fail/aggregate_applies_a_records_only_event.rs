use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct StatementSent {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), records(StatementSent))]
struct Account {
    statements: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, _deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(StatementSent {});
        Ok(self.statements)
    }
}

impl Apply<StatementSent> for Account {
    fn apply(&mut self, _: &StatementSent) {
        self.statements += 1;
    }
}

fn main() {}
