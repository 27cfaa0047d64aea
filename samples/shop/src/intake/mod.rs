//! Intake: where orders come from. Documents in files, or a generator; either way they are checked before anybody hears of them.

mod document;
mod generator;
mod reader;

pub use document::{Objection, check};
pub use generator::{CATALOG, Generator, product};
pub use reader::{Reader, Spoilt};
