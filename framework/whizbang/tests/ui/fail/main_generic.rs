
#[whizbang::main]
async fn main<T>() {}
