//! What tests of services, stores and bridges need. Feature `testing`.

pub mod bridge;
pub mod store;
