use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
enum BalanceOf {
    Account {
        #[key]
        account: String,
    },
}

fn main() {}
