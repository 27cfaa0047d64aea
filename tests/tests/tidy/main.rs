//! Rules that a reader may rely on and a compiler does not check, read from the text of the repository.
//!
//! Each rule is a function from files to findings. Beside the test that the repository has none stands a test that a bad
//! file has some: a rule that cannot fail is no rule. An exception is a line in a list, with its reason, and goes when it is
//! no longer needed.

mod dependencies;
mod dependency_table;
mod docs;
mod doors;
mod english;
mod generics;
mod habits;
mod mutations;
mod promises;
mod rooms;
mod running;
mod source;
mod words;
