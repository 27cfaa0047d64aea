//! Analytics: sales by product and city. It sends no commands; it subscribes to events.

mod books;
mod revenue;

pub use books::{AskBooks, Books, Sums};
pub use revenue::{AskRevenue, Revenue, Sales};

use whizbang::prelude::*;

/// The domain of sales figures.
#[derive(Domain)]
pub struct Analytics;
