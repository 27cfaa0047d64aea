//! Rules for the text of the repository that a compiler does not check.
//!
//! Each rule is a function from files to findings. One test asserts that the repository has no findings, another that a bad file
//! has some: a rule that cannot fail is useless. An exception is a row in a list, with its reason, and is removed when it is no
//! longer needed.

mod book;
mod commands;
mod dependencies;
mod dependency_table;
mod deploy;
mod doc_share;
mod docs;
mod documented_names;
mod english;
mod file_cycles;
mod folders;
mod generics;
mod growth;
mod habits;
mod lock_files;
mod modules;
mod mutations;
mod promises;
mod running;
mod seams;
mod source;
mod words;
