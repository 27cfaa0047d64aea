//! The cases, each a sentence about what every bridge does.

mod answers;
mod flow;
mod hostile;
pub mod sample;
mod trouble;
mod ways;

pub use answers::*;
pub use flow::*;
pub use hostile::*;
pub use trouble::*;
pub use ways::*;
