//! Real nodes on real nats-servers: the server is killed, paused, emptied or down, and the checker verifies the results.
//!
//! A test runs on one thread in real time, except for the server and for callers in their own processes.

mod adversary;
#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod callers;
mod claims;
mod clocks;
mod cluster;
#[path = "../../../framework/whizbang/tests/schema_drift/contracts.rs"]
mod contracts;
mod disclosure;
mod dropped_node;
mod event_recorder;
mod forgery;
mod hostile;
mod jobs;
mod log_capture;
mod log_floods;
mod memory;
mod no_logins;
mod observed_bridge;
mod older_copy;
mod ordinary_starts;
mod outage;
mod posts;
mod processes;
mod query_headers;
mod readiness;
mod republish;
mod running_copy;
mod server_faults;
mod services;
mod shape_drift;
mod slow_readers;
mod stalled;
mod start_failures;
mod windows;

use whizbang_tests::nats::Release;
use whizbang_tests::until;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];
