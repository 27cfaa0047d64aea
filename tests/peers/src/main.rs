//! The same command on cqrs-es, in memory and on PostgreSQL, beside ours: what a user of it would see.
//!
//! `cargo run --release --manifest-path tests/peers/Cargo.toml [-- ROW ...]` prints one JSON object per line, as `tests/bench`
//! does: value is ours, anchor is theirs, ratio the median of the paired ratios. PostgreSQL is started in a folder of its own;
//! where `initdb`, `pg_ctl` and `postgres` are not in the PATH its rows are left out, and that is said.

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
