//! At least a fifth of the code of each crate is documentation, private items included.
//!
//! Counted are lines that begin with `///` or `//!`, among all lines that are not blank, without tests. The number says nothing
//! about the content of the lines; it only keeps a crate from losing its documentation while it grows.

use std::collections::BTreeMap;

use crate::source::{File, repository};

/// The least share of documentation, in percent.
const LEAST: usize = 20;

/// The crate of a file of product code.
fn package(file: &File) -> Option<&str> {
    if file.path.starts_with("macros/src/") && file.is_rust() {
        return Some("macros");
    }
    let (package, _) = file.path.strip_prefix("framework/")?.split_once("/src/")?;
    (file.is_product() && !file.path.ends_with("_tests.rs")).then_some(package)
}

/// The lines of documentation and all lines of each crate.
fn lines(files: &[File]) -> BTreeMap<&str, (usize, usize)> {
    let mut lines = BTreeMap::<&str, (usize, usize)>::new();
    for file in files {
        let Some(package) = package(file) else { continue };
        let (docs, all) = lines.entry(package).or_default();
        for line in file.product_text().lines().map(str::trim_start).filter(|line| !line.is_empty()) {
            *docs += usize::from(line.starts_with("///") || line.starts_with("//!"));
            *all += 1;
        }
    }
    lines
}

/// The crates whose share is below their limit.
fn undocumented(files: &[File]) -> String {
    let mut wrong = String::new();
    for (package, (docs, all)) in lines(files) {
        if docs * 100 < all * LEAST {
            wrong += &format!("\n  {package}: {docs} of {all} lines are documentation, less than {LEAST} %");
        }
    }
    wrong
}

#[test]
fn a_fifth_of_each_crate_is_documentation() {
    let files = repository();
    assert!(lines(&files).len() > 10, "the crates were not found");
    let wrong = undocumented(&files);
    assert!(wrong.is_empty(), "document purpose, units, errors and invariants:{wrong}\n");
}

#[test]
fn missing_documentation_is_found() {
    let code = "//! A.\n\nfn a() {}\nfn b() {}\nfn c() {}\nfn d() {}\n";
    let found = |text: &str| !undocumented(&[File::new("framework/log/src/a.rs", text)]).is_empty();
    assert!(!found(code), "one line of five");
    assert!(found(&format!("{code}fn e() {{}}\n")));
    assert!(!found(&format!("{code}#[cfg(test)]\nmod tests {{\n    fn f() {{}}\n}}\n")), "tests do not count");
}
