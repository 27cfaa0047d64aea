//! The errors of the derives for every mistake. `derives.rs` contains what they accept.
//!
//! `ui/fail` has one program per mistake, `ui/several` programs with several. Next to each is the expected output of
//! the compiler. After a change: `TRYBUILD=overwrite cargo test -p whizbang --test ui`, and read the difference.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The derives' own rule for names: a proc macro cannot call the framework, which depends on it.
#[path = "../../../macros/src/names.rs"]
#[allow(dead_code, reason = "only the rule is compared here")]
mod names;

/// The compiler that produced the expected errors. Other versions word the same errors differently.
const COMPILER: &str = "rustc 1.95.";

/// Returns the programs in a folder of `tests/ui`, with the expected errors of each.
fn programs(folder: &str) -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui").join(folder);
    let entries = std::fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("an entry").path());
    entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let expected = std::fs::read_to_string(path.with_extension("stderr")).unwrap_or_default();
            (path, expected)
        })
        .collect()
}

/// Returns the number of errors and warnings in a compiler's output.
fn count(output: &str) -> usize {
    output.lines().filter(|line| line.starts_with("error") || line.starts_with("warning")).count()
}

#[test]
fn every_mistake_is_reported_at_its_place() {
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(compiler).arg("--version").output().expect("the compiler says its version").stdout;
    let version = String::from_utf8_lossy(&version);
    if !version.starts_with(COMPILER) {
        println!("the errors are compared under {COMPILER}x only; this is {version}");
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/fail/*.rs");
    cases.compile_fail("tests/ui/several/*.rs");
}

#[test]
fn one_mistake_is_one_error() {
    let programs = programs("fail");
    assert!(programs.len() > 100, "only {} programs were found", programs.len());
    for (path, expected) in programs {
        assert_eq!(count(&expected), 1, "{}", path.display());
    }
}

#[test]
fn several_mistakes_are_reported_together() {
    let programs = programs("several");
    assert!(!programs.is_empty());
    for (path, expected) in programs {
        let program = std::fs::read_to_string(&path).expect("the program is there");
        let mistakes = program.trim_start_matches("// ").split(' ').next().and_then(|number| number.parse().ok());
        assert_eq!(Some(count(&expected)), mistakes, "{}", path.display());
    }
}

#[test]
fn errors_show_no_private_names_of_the_derives() {
    for (path, expected) in programs("fail").into_iter().chain(programs("several")) {
        for hidden in ["WHIZBANG_CODING", "WhizbangNamed", "WhizbangOf", "WhizbangChecked", "__Whizbang"] {
            assert!(!expected.contains(hidden), "{} shows `{hidden}`", path.display());
        }
    }
}

#[test]
fn derives_and_framework_agree_on_valid_names() {
    for code in 0..=u32::from(u16::MAX) {
        let Some(letter) = char::from_u32(code) else { continue };
        for text in [format!("{letter}"), format!("a{letter}"), format!("{letter}z")] {
            assert_eq!(names::is_valid(&text), whizbang::message::Name::is_valid(&text), "{text:?}");
        }
    }
    for length in 0..100 {
        let text = "a".repeat(length);
        assert_eq!(names::is_valid(&text), whizbang::message::Name::is_valid(&text), "{length} bytes");
    }
}
