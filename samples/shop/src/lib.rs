//! The shop: an order business of six services, each with its own domain and store, that meet only through messages.
//!
//! The services, in the order of an order's way: [`orders`], [`inventory`], [`payments`], [`shipping`], then those who listen:
//! [`notifications`] and [`analytics`]. Each is read in five minutes and knows nothing of nodes, stores and brokers; [`service`]
//! puts each of them on a node. Around them: [`intake`] checks what comes in, [`link`] is how they meet, [`permissions`]
//! what each may do on a server, [`mod@run`] places
//! orders and waits for their end, [`report`] and [`flow`] tell from the logs what has happened.

pub mod orders;

pub mod inventory;

pub mod payments;

pub mod shipping;

pub mod notifications;

pub mod analytics;

pub mod service;

pub mod flow;
pub mod intake;
pub mod link;
pub mod permissions;
pub mod report;
pub mod run;
