use whizbang::prelude::*;

#[derive(Domain)]
struct TheDomainOfEverythingThatAnOfficeInchargeOfEveryKindOfAccountEverDoes;

fn main() {}
