//! The cases, each a guarantee of every bridge.
//!
//! Each is a public function that gets a [fixture](crate::bridge::Fixture). Its first paragraph is the guarantee, its second
//! says why a node needs it.

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
