//! The program that moves a store, as users run it; and the same move, which aborts at the beginning of one step.
//!
//! `move-store FROM TO`, or `move-store FROM TO STEP`.

#[path = "../../../framework/whizbang/examples/move_store.rs"]
mod program;

use std::process::ExitCode;

use program::place;
use whizbang::store::move_store;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, step] = &arguments[..] else { return program::main() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (from, to) = (place(from).unwrap(), place(to).unwrap());
    let moved = runtime.block_on(move_store(&*from, &*to, |progress| {
        // No destructor runs: neither files nor connections are closed in order.
        if progress.step.as_str() == step {
            std::process::abort();
        }
    }));
    println!("{moved:?}");
    ExitCode::FAILURE
}
