//! The cases, each a guarantee of every bridge.

mod failures;
mod flow;
mod hostile;
mod ownership;
mod requests;
mod routing;
pub mod sample;
mod watches;

pub use failures::*;
pub use flow::*;
pub use hostile::*;
pub use ownership::*;
pub use requests::*;
pub use routing::*;
pub use watches::*;
