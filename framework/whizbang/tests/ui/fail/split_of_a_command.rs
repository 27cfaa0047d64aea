use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Deserialize)]
struct PayV1 {}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, version = 2, split(1 = PayV1), upcast(1 = PayV1))]
struct Pay {
    #[key]
    account: String,
}

impl From<PayV1> for Pay {
    fn from(_: PayV1) -> Self {
        Self { account: String::new() }
    }
}

fn main() {}
