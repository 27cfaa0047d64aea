//! Analytics: what was sold where. It asks nobody anything: it listens.

mod books;
mod revenue;

pub use books::{AskBooks, Books, Sums};
pub use revenue::{AskRevenue, Revenue, Sales};

use whizbang::prelude::*;

/// What was sold where.
#[derive(Domain)]
pub struct Analytics;
