//! Benchmarks: each row is measured in alternation with its anchor, the same work without the framework.
//!
//! `cargo run --release -p whizbang-bench [-- ROW ...]` prints one JSON object per line: bench, value, unit, anchor,
//! anchor_value, ratio (the median of the paired ratios). Rows: see `ROWS`.

mod account;
mod anchor;
mod durable;
mod idle;
mod jobs;
mod memory;
mod nats;
mod neighbors;
mod postgres;
mod remembered;
mod report;
mod simulation;
mod turn;

type Row = (&'static str, fn());

const ROWS: &[Row] = &[
    // First, because it measures the memory of the process: memory freed by other rows would be reused and not counted.
    ("memory_per_idle_key", memory::idle_key),
    ("turn_1_key", turn::one_key),
    ("turn_10k_keys", turn::ten_thousand_keys),
    ("turn_3_layers", turn::layered),
    ("turn_256_in_flight", turn::in_flight),
    ("durable_alone", durable::alone),
    ("durable_together", durable::together),
    ("postgres_alone", postgres::alone),
    ("postgres_together", postgres::together),
    ("activation", durable::activation::from_events),
    ("activation_with_snapshot", durable::activation::from_snapshot),
    ("keys_1m", durable::keys::live),
    ("keys_1m_spread", durable::keys::spread),
    ("nats_command_latency", nats::command_alone),
    ("nats_command_latency_threads", nats::command_alone_threads),
    ("nats_command_256", nats::command_256),
    ("nats_events_1", nats::events_1),
    ("nats_events_1_threads", nats::events_1_threads),
    ("nats_events_4", nats::events_4),
    ("nats_events_16", nats::events_16),
    ("failing_1_percent", neighbors::failing_messages),
    ("slow_job", neighbors::slow_job),
    ("job_that_sends", jobs::that_sends),
    ("remembered_ids", remembered::ids),
    ("pending_timers", remembered::timers),
    ("simulation_seed", simulation::seed),
    ("idle_alone", idle::alone),
    ("idle_over_nats", idle::over_nats),
    ("idle_over_postgres", idle::over_postgres),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [durable::keys::MEMORY, folder] = wanted.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return durable::keys::memory(folder.as_ref());
    }
    for (name, run) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            eprintln!("{name} …");
            run();
        }
    }
}
