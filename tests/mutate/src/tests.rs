//! Tests of finding and rewriting: the code that becomes a mutant, the code that does not, and the text with switches.

use std::collections::BTreeSet;

use crate::find::{Shape, Site, sites, test_modules};
use crate::replace;
use crate::report::{Equivalents, report};
use crate::rewrite::rewrite;
use crate::tree::Mutant;
use crate::trial::Verdict;

fn found(text: &str) -> Vec<Site> {
    sites(text).unwrap()
}

fn changes(text: &str) -> Vec<String> {
    found(text).into_iter().flat_map(|site| site.changes).map(|change| change.text).collect()
}

fn rewritten(text: &str) -> String {
    rewrite(text, &found(text), 1, &BTreeSet::new()).text
}

fn values(output: &str) -> Vec<String> {
    replace::values(&syn::parse_str(output).unwrap())
}

#[test]
fn a_function_returns_values_of_its_type() {
    assert_eq!(values("bool"), ["true", "false"]);
    assert_eq!(values("Option<u8>"), ["None", "Some(0)", "Some(1)"]);
    assert_eq!(values("Result<(), Error>"), ["Ok(())"]);
    assert_eq!(values("io::Result<Vec<bool>>"), ["Ok(Vec::new())", "Ok(vec![true])"]);
    assert_eq!(values("(u8, String)"), ["(0, String::new())"]);
    assert_eq!(values("&str"), ["\"\"", "\"xyzzy\""]);
    assert_eq!(values("Rc<Track>"), ["Rc::new(Default::default())"]);
    assert!(values("impl Iterator<Item = u8>").is_empty());
    assert!(values("!").is_empty());
}

#[test]
fn switches_stay_on_the_lines_of_the_code() {
    let text = "fn f(a: u8) -> bool {\n    a == 1\n        // why\n        && a != 2\n}\n";
    let switched = rewritten(text);
    assert_eq!(switched.lines().count(), text.lines().count());
    assert!(switched.lines().nth(2).unwrap().contains("// why"), "{switched}");
    syn::parse_file(&switched).unwrap();
}

#[test]
fn nested_operators_are_switched_from_the_outside() {
    let switched = rewritten("fn f() { x(a + b == c); }");
    let expected = "fn f() { if crate::mutants::on(1) { return; } x(\
        (if crate::mutants::on(2) { (a + b) != (c) } else { \
        (if crate::mutants::on(3) { (a) - (b) } else if crate::mutants::on(4) { (a) * (b) } else { a + b }) == c })); }";
    assert_eq!(switched, expected);
}

#[test]
fn dropped_mutants_leave_no_switch() {
    let text = "fn f() { x(a + b == c); }";
    assert_eq!(rewrite(text, &found(text), 1, &(1..=4).collect()).text, text);
    let one = rewrite(text, &found(text), 1, &[1, 2, 4].into()).text;
    assert_eq!(one, "fn f() { x((if crate::mutants::on(3) { (a) - (b) } else { a + b }) == c); }");
}

#[test]
fn guards_and_arms_are_switched() {
    let text = "fn f() { match a { B if c => d(), E => f(), _ => {} } }";
    assert_eq!(changes(text), ["body -> ()", "guard c -> true", "guard c -> false", "delete arm E"]);
    let switched = rewritten(text);
    assert!(switched.contains("B if (if crate::mutants::on(2) { true } else if"), "{switched}");
    assert!(switched.contains("E if !crate::mutants::on(4) =>"), "{switched}");
    assert!(!changes("fn f() { match a { B => d(), E => f() } }").iter().any(|change| change.contains("arm")));
}

#[test]
fn tests_constants_macros_and_texts_are_left_alone() {
    for text in [
        "const A: u8 = 1 + 1;",
        "const fn f() -> u8 { 1 + 1 }",
        "#[cfg(test)] mod tests { fn f() -> bool { a == b } }",
        "#[cfg(feature = \"testing\")] fn f() -> bool { a == b }",
        "impl fmt::Debug for A { fn fmt(&self) -> bool { a == b } }",
        "fn f() -> X where X: Y<{ 1 + 1 }>;",
    ] {
        if let Ok(file) = sites(text) {
            assert!(file.is_empty(), "{text}: {file:?}");
        }
    }
    assert_eq!(changes("fn f() { assert!(a == b); }"), ["body -> ()"]);
    assert_eq!(changes("fn f() { let a = [0; 1 + 1]; if let 1..=2 = b {} }"), ["body -> ()"]);
    assert_eq!(changes("fn f() {}"), Vec::<String>::new());
    assert_eq!(changes("fn f() -> bool { true }"), ["body -> false"]);
}

#[test]
fn chains_with_a_let_keep_their_operator() {
    let text = "fn f() { if let Some(a) = b && a == c && d { e(); } }";
    assert_eq!(changes(text), ["body -> ()", "== -> != in a == c"]);
    syn::parse_file(&rewritten(text)).unwrap();
}

#[test]
fn modules_for_tests_are_found() {
    let text = "mod a; #[cfg(test)] mod b; #[cfg(feature = \"testing\")] pub(crate) mod c; #[cfg(unix)] mod d; \
                #[cfg(test)] #[path = \"f.rs\"] mod e;";
    assert_eq!(test_modules(text).unwrap(), ["b", "c", "f.rs"]);
}

#[test]
fn an_error_is_blamed_on_the_innermost_mutant() {
    let text = "fn f() -> bool { a + b == c }";
    let file = rewrite(text, &found(text), 1, &BTreeSet::new());
    let at = |part: &str| file.text.find(part).map(|at| at..at + part.len()).unwrap();
    assert_eq!(file.blamed(&at("(a) - (b)")), [4]);
    assert_eq!(file.blamed(&at("return false")), [2]);
    assert_eq!(file.blamed(&at("a + b }")), [4, 5]);
    assert_eq!(file.blamed(&at("== c")), [3]);
    assert!(file.blamed(&at("fn f")).is_empty());
}

#[test]
fn sites_know_their_function_and_line() {
    let text = "struct A;\nimpl B for A {\n    fn c(&self) -> u8 {\n        let d = |e| e > 1;\n        2\n    }\n}\n";
    let names: Vec<(String, usize)> = found(text).into_iter().map(|site| (site.function, site.line)).collect();
    assert_eq!(names, [("A::c".to_owned(), 3), ("A::c".to_owned(), 4)]);
    assert!(matches!(found(text)[0].shape, Shape::Body(_)));
}

#[test]
fn equivalent_mutants_do_not_count_as_missed() {
    let mutant = |key: &str| Mutant {
        key: key.to_owned(),
        number: 1,
        folder: "inbox",
        file: "a.rs".to_owned(),
        line: 1,
        function: "f".to_owned(),
        change: key.to_owned(),
    };
    let mutants = [mutant("a.rs | f | || -> && in a || b"), mutant("a.rs | f | x"), mutant("a.rs | g | y")];
    let equivalents =
        Equivalents::read("# why\n\na.rs | f | || -> && in a || b | a log line\na.rs | h | z | is gone\n").unwrap();
    assert_eq!(equivalents.stale(&mutants), ["a.rs | h | z"]);
    let verdicts = [Verdict::Survived, Verdict::NotReached, Verdict::Caught];
    let verdicts = mutants.iter().map(|mutant| mutant.key.clone()).zip(verdicts).collect();
    let (text, missed) = report(&mutants.iter().collect::<Vec<_>>(), &verdicts, &equivalents);
    assert_eq!(missed, 50.0, "{text}");
    assert!(Equivalents::read("a.rs | f | no reason").is_err());
}

#[test]
fn files_of_tests_are_not_mutated() {
    let folder = |file: &str| crate::tree::folder_of(&format!("framework/store-embedded/src/{file}"));
    assert_eq!(["scan.rs", "scan/place.rs"].map(folder), [Some("store-embedded"); 2]);
    assert_eq!(["lib.rs", "tests.rs", "scan/tests.rs", "tests/memory_disk.rs", "notes.md"].map(folder), [None; 5]);
}
