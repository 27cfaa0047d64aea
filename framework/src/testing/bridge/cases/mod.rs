//! The cases, each a guarantee of every bridge.

mod responses;
mod flow;
mod hostile;
pub mod sample;
mod failures;
mod routing;

pub use requests::*;
pub use flow::*;
pub use hostile::*;
pub use failures::*;
pub use routing::*;
