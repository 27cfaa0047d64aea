//! The shop, run as a person runs it: what comes in wrong is named, its balances hold whoever is killed, and what it reports is
//! what stands in its logs.

mod flow;
mod input;
mod kills;
mod permissions;
mod provider;
mod recount;
mod report;
mod runs;
mod shop;
mod size;
