//! Intake: the sources of orders, which are documents in files and a generator. Documents are validated before anything is sent.

mod document;
mod generator;
mod reader;

pub use document::{DocumentError, check};
pub use generator::{CATALOG, Generator, product};
pub use reader::{InvalidDocument, Reader};
