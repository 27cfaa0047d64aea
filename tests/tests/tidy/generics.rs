//! The code of the framework that is compiled for each actor and message type of a user's program stays small.
//!
//! Code that is generic over such a type costs compile time for each type, so it is a thin layer around code without type
//! parameters. `tests/compile-cost` measures the cost.

use crate::source::{File, Finding, assert_none, repository};

/// Traits that users implement. A parameter with such a bound makes an item generic over users' types.
const TRAITS: [&str; 11] = [
    "Stateful",
    "Command",
    "Message",
    "Event",
    "Query",
    "Document",
    "Coded",
    "Serialize",
    "DeserializeOwned",
    "DeserializeSeed",
    "Visitor",
];

/// The modules on a command's path, and the limit of lines that are generic over users' types: a tenth above the count when
/// this test was written. Measure the cost with `tests/compile-cost` before raising a limit. `actor` and `aggregate` were
/// raised for accessors of headers and the publisher, and `actor`, `client` and `saga` for delayed messages, schedules, named
/// timers and expiries, `client` again for headers of queries: these are compiled only where a program calls them.
const LINES: [(&str, usize); 6] =
    [("actor", 392), ("aggregate", 80), ("client", 392), ("message", 550), ("router", 52), ("saga", 62)];

/// The lines of code inside items of `code` that are generic over users' types: functions, and blocks of `impl`.
fn generic_lines(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let (mut count, mut at) = (0, 0);
    while let Some(line) = lines.get(at) {
        if !is_generic(line.trim_start()) {
            at += 1;
            continue;
        }
        let (mut depth, mut opened) = (0_usize, false);
        while let Some(line) = lines.get(at) {
            count += usize::from(!line.trim().is_empty());
            depth += line.matches('{').count();
            opened |= line.contains('{');
            depth = depth.saturating_sub(line.matches('}').count());
            at += 1;
            // A function of a trait may have no block.
            if (opened && depth == 0) || (!opened && line.ends_with(';')) {
                break;
            }
        }
    }
    count
}

/// Returns true if a line begins an `impl` or a function with a parameter for a type of users.
fn is_generic(line: &str) -> bool {
    // Debug output is compiled only for the types that a program prints.
    let begins = (line.starts_with("impl<") || line.contains("fn ")) && !line.contains(" std::fmt::Debug for ");
    let Some((_, parameters)) = line.split_once('<').filter(|_| begins) else { return false };
    let bounds = parameters.split(['>', '(']).next().unwrap_or_default();
    let words = bounds.split(|char: char| !char.is_alphanumeric());
    bounds.contains(':') && words.into_iter().any(|word| TRAITS.contains(&word))
}

fn grown(files: &[File], most: &[(&str, usize)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (module, most) in most {
        let folder = format!("{module}/");
        let inside: Vec<&File> = files
            .iter()
            .filter(|file| file.is_product() && file.inside().is_some_and(|path| path.starts_with(&folder)))
            .collect();
        let lines: usize = inside.iter().map(|file| generic_lines(&file.product_code())).sum();
        if lines > *most
            && let Some(first) = inside.first()
        {
            let what = format!(
                "`{module}` has {lines} lines of code that are compiled for each type of users, more than {most}"
            );
            findings.push(first.finding_at_top(what));
        }
    }
    findings
}

#[test]
fn code_compiled_for_each_user_type_stays_small() {
    assert_none(&grown(&repository(), &LINES));
}

#[test]
fn growth_of_generic_code_is_found() {
    let text =
        "fn plain() {\n}\nimpl<A: Stateful> Plan<A> {\n    fn one() {}\n}\npub fn two<C: Command>(c: C) {\n    c;\n}\n";
    let files = [File::new("framework/runtime/src/actor/a.rs", text)];
    assert_eq!(generic_lines(text), 6);
    assert!(grown(&files, &[("actor", 6)]).is_empty());
    assert_eq!(grown(&files, &[("actor", 5)]).len(), 1);
}
