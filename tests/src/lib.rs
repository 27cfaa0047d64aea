//! The test support of the black-box tests: real servers, real processes, and the checker.

// Servers and processes have no useful text.
#![allow(missing_debug_implementations)]

pub mod checker;
mod eventually;
mod fuzz;
mod http;
mod long;
mod memory;
pub mod nats;
#[cfg(doctest)]
mod pages;
mod panics;
mod ports;
pub mod postgres;
mod proxy;
mod sample;

pub use eventually::{eventually, poll_interval, until, wait_for};
pub use fuzz::{Fuzz, Outcome};
pub use http::{HttpResponse, http_request};
pub use long::{brief_or_long, is_long};
pub use memory::resident_mib;
pub use panics::Panics;
pub use ports::ReservedPort;
pub use proxy::{Direction, LossyProxy, StallingProxy};
pub use sample::{fast_sample, root, sample};
