//! The shop, run as a program: invalid input is reported, its balances hold after kills, and its report equals its logs.

mod flow;
mod gateway;
mod input;
mod kills;
mod nodes;
mod permissions;
mod provider;
mod recount;
mod report;
mod runs;
mod shop;
mod size;
