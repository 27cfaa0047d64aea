//! The same command on cqrs-es, in memory and on PostgreSQL, and on whizbang, as a user of each would run it.
//!
//! `cargo run --release --manifest-path tests/peers/Cargo.toml [-- ROW ...]` prints one JSON object per line, as `tests/bench`
//! does: the value is whizbang, the anchor is cqrs-es, and the ratio is the median of the paired ratios. PostgreSQL is started in a
//! temporary folder. Its rows are skipped with a message if `initdb`, `pg_ctl` or `postgres` is not in the PATH.

#[path = "../../bench/src/account.rs"]
mod account;
mod memory;
mod ours;
mod postgres;
#[expect(dead_code, reason = "a part of it is for rows that are not here")]
#[path = "../../bench/src/report.rs"]
mod report;
mod server;
mod theirs;

type Row = (&'static str, fn());

const ROWS: &[Row] = &[("cqrs_es_memory", memory::row), ("cqrs_es_postgres", postgres::row)];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if wanted == [memory::CHILD] {
        return memory::child();
    }
    for (name, run) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("{name} …");
            run();
        }
    }
}
