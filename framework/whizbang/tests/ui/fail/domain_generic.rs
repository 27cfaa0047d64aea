use whizbang::prelude::*;

#[derive(Domain)]
struct Bank<T>(std::marker::PhantomData<T>);

fn main() {}
