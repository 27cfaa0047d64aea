use whizbang::prelude::*;

#[derive(Deserialize)]
struct Line<'a> {
    text: &'a str,
}

fn main() {}
