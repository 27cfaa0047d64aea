//! The shop: an order business of six services, each with its own domain and store, that exchange only messages.
//!
//! The services, in the order in which they handle an order: [`orders`], [`inventory`], [`payments`], [`shipping`], then the
//! subscribers [`notifications`] and [`analytics`]. Each is independent of nodes, stores and brokers;
//! [`service`] puts each of them on a node. Around them: [`intake`] validates documents, [`link`] connects the services,
//! [`permissions`] restricts each on a server, [`logs`] opens the logs for reading, [`mod@run`] places orders and waits for their end, [`report`] and [`flow`] read
//! the logs.

// The library is only for the program and its tests.
#![allow(missing_debug_implementations)]

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
pub mod logs;
pub mod permissions;
pub mod report;
pub mod run;
