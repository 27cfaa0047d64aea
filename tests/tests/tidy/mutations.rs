//! Each mutation in `tests/mutations` applies to the present code, changes only product code, and names an existing test. The
//! mutants that count as equivalent exist.
//!
//! `tests/mutants` runs the mutations, `tests/mutate` the mutants.

use std::ops::Range;
use std::process::Command;

use super::habits::test_functions;
use super::source::{File, Finding, assert_none, closing, file, name_at, places, repository, top};

const FOLDER: &str = "tests/mutations/";
const PRODUCT: [&str; 3] = ["framework/", "macros/src/", "samples/"];

/// Mutations whose head or diff is invalid for `tests/mutants`.
fn invalid_mutations(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for patch in files.iter().filter(|file| file.path.starts_with(FOLDER)) {
        let name = patch.path.strip_prefix(FOLDER).and_then(|name| name.strip_suffix(".patch"));
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.is_some_and(|name| name.chars().all(is_word)) {
            findings.push(patch.finding_at_top("is not named subject-fault.patch in lower case"));
            continue;
        }
        let first = patch.text.lines().next().unwrap_or_default();
        match first.strip_prefix("# detect: ").map(|arguments| arguments.split_whitespace().collect::<Vec<_>>()) {
            Some(arguments) => match arguments[..] {
                ["--test", target, filter] if !is_in_target(files, target, filter) => {
                    findings.push(
                        patch.finding_at_top(format!("no test of the target `{target}` has `{filter}` in its name")),
                    );
                }
                ["--lib", filter] if !is_in_library(files, filter) => {
                    findings.push(patch.finding_at_top(format!("no test of a library has `{filter}` in its name")));
                }
                ["--test", _, _] | ["--lib", _] => {}
                _ => findings.push(patch.finding_at_top("expected `# detect: --test TARGET FILTER` or `--lib FILTER`")),
            },
            None => findings.push(patch.finding_at_top("the first line is not `# detect: --test TARGET FILTER`")),
        }
        for line in patch.text.lines().filter_map(|line| line.strip_prefix("+++ b/")) {
            let is_test = line.contains("/tests/") || line.ends_with("/tests.rs");
            if is_test || !PRODUCT.iter().any(|folder| line.starts_with(folder)) {
                findings.push(patch.finding_at_top(format!("changes `{line}`, which is not product code")));
            }
        }
    }
    findings
}

/// Returns true if a test of an integration target has the filter in its path, as `cargo test` prints it.
fn is_in_target(files: &[File], target: &str, filter: &str) -> bool {
    let (one, folder) = (format!("/tests/{target}.rs"), format!("/tests/{target}/"));
    let is_part = |file: &&File| file.is_rust() && (file.path.ends_with(&one) || file.path.contains(&folder));
    // The tests of a conformance suite have the names of its cases.
    let has_suite =
        |suite: &str| files.iter().filter(is_part).any(|file| file.text.contains(&format!("{suite}_suite!(")));
    let is_case = |suite: &&str| {
        let cases = format!("framework/conformance/src/{suite}/cases");
        let cases = files.iter().filter(|file| file.path.starts_with(&cases));
        cases.flat_map(|file| file.text.split("fn ").skip(1)).any(|rest| name_at(rest, 0).contains(filter))
    };
    let is_test = |file: &File| {
        let module = file.path.split_once(&folder).map_or("", |(_, module)| module);
        paths_of_tests(file, module).iter().any(|test| test.contains(filter))
    };
    files.iter().filter(is_part).any(is_test)
        || ["bridge", "broker", "store"].iter().filter(|suite| has_suite(suite)).any(is_case)
}

/// Returns true if a test of a library has the filter in its path, as `cargo test` prints it.
fn is_in_library(files: &[File], filter: &str) -> bool {
    files.iter().filter(|file| file.is_rust()).any(|file| {
        let module = file.path.split_once("/src/").map(|(_, module)| module);
        module.is_some_and(|module| paths_of_tests(file, module).iter().any(|test| test.contains(filter)))
    })
}

/// The paths of the tests of a file: its modules, the modules inside of it, and the name. `file` is its path below the root of
/// its target.
fn paths_of_tests(source: &File, file: &str) -> Vec<String> {
    let code = source.code();
    let parts = file.trim_end_matches(".rs").split('/');
    let outside: Vec<&str> = parts.filter(|part| !["", "lib", "main", "mod"].contains(part)).collect();
    let modules: Vec<(Range<usize>, &str)> = places(&code, "mod")
        .into_iter()
        .filter_map(|at| {
            let name = name_at(&code, at + "mod ".len());
            let open = at + "mod ".len() + name.len() + 1;
            (code.as_bytes().get(open) == Some(&b'{')).then(|| (at..closing(&code, open), name))
        })
        .collect();
    let path = |(at, name)| {
        let inside = modules.iter().filter(|(range, _)| range.contains(&at)).map(|(_, module)| *module);
        outside.iter().copied().chain(inside).chain([name]).collect::<Vec<_>>().join("::")
    };
    test_functions(&code).into_iter().map(path).collect()
}

/// Entries of the list of equivalent mutants whose file or function does not exist.
fn stale_equivalents(list: &File, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in list.lines().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let mut cells = line.split(" | ");
        let (path, function) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let head = format!("fn {}", function.rsplit("::").next().unwrap_or_default());
        if !files.iter().any(|file| file.path == path && !places(&file.code(), &head).is_empty()) {
            findings.push(list.finding(at, format!("`{path}` has no function `{function}`")));
        }
    }
    findings
}

/// Deliberate bugs in product code instead of in a patch.
fn deliberate_bugs(files: &[File]) -> Vec<Finding> {
    let product =
        files.iter().filter(|file| file.is_rust() && PRODUCT.iter().any(|folder| file.path.starts_with(folder)));
    product
        .flat_map(|file| {
            let code = file.code();
            let found = code.match_indices("cfg!(plant").chain(code.match_indices("cfg(plant")).map(|(at, _)| at);
            found
                .map(|at| file.finding(at, "is a deliberate bug: make it a patch in tests/mutations"))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn mutations_change_product_code_and_name_tests() {
    let files = repository();
    assert!(files.iter().any(|file| file.path.starts_with(FOLDER)), "there are no mutations");
    assert_none(&invalid_mutations(&files));
}

#[test]
fn mutations_apply_to_the_code() {
    let mut stale = Vec::new();
    for patch in repository().iter().filter(|file| file.path.starts_with(FOLDER)) {
        let checked = Command::new("git")
            .args(["apply", "--check", &patch.path])
            .current_dir(top())
            .output()
            .expect("git is installed");
        if !checked.status.success() {
            let why = String::from_utf8_lossy(&checked.stderr);
            stale.push(patch.finding_at_top(format!("does not apply: {}", why.trim())));
        }
    }
    assert_none(&stale);
}

#[test]
fn equivalent_mutants_name_functions_that_exist() {
    assert_none(&stale_equivalents(&file("tests/mutate/equivalent.txt"), &repository()));
    let code = [File::new("framework/core/src/a.rs", "impl A { fn get(&self) {} }")];
    let found =
        |entry: &str| stale_equivalents(&File::new("equivalent.txt", &format!("# A list.\n\n{entry}\n")), &code);
    assert_eq!(found("framework/core/src/a.rs | A::get | < -> <= in a < b | why").len(), 0);
    assert_eq!(found("framework/core/src/a.rs | A::ge | < -> <= in a < b | why").len(), 1, "another function");
    assert_eq!(found("framework/core/src/b.rs | A::get | < -> <= in a < b | why").len(), 1, "another file");
}

#[test]
fn product_code_contains_no_deliberate_bugs() {
    assert_none(&deliberate_bugs(&repository()));
    let bad = File::new("framework/core/src/a.rs", "fn f() { if cfg!(plant = \"x\") { g() } }");
    assert_eq!(deliberate_bugs(&[bad]).len(), 1);
}

#[test]
fn invalid_mutation_is_found() {
    let code = File::new("framework/whizbang/tests/a.rs", "#[test]\nfn money_is_conserved() {}");
    let product = "+++ b/framework/core/src/a.rs";
    let found = |head: &str, changed: &str| {
        let code = File::new(&code.path, &code.text);
        invalid_mutations(&[code, File::new("tests/mutations/x.patch", &format!("{head}\n{changed}\n"))]).len()
    };
    assert_eq!(found("# detect: --test a money_is", product), 0);
    assert_eq!(found("# detect: --test b money_is", product), 1, "another target");
    assert_eq!(found("# detect: --test a nothing_is", product), 1, "another name");
    assert_eq!(found("diff --git", product), 1, "no head");
    assert_eq!(found("# detect: money_is", product), 1, "no target");
    assert_eq!(found("# detect: --test a money_is", "+++ b/framework/whizbang/tests/a.rs"), 1, "changes a test");
    let inside =
        "#[test]\nfn early_one_runs() {}\nmod tests {\n#[test]\nfn late_one_runs() {}\nfn no_test_at_all() {}\n}";
    let found_in = |path: &str, head: &str| {
        let files = [File::new(path, inside), File::new("tests/mutations/x.patch", &format!("{head}\n{product}\n"))];
        invalid_mutations(&files).len()
    };
    for (path, target) in [
        ("framework/core/src/b/a.rs", "--lib b::a::"),
        ("framework/core/src/b/a/mod.rs", "--lib b::a::"),
        ("framework/core/src/lib.rs", "--lib "),
        ("tests/tests/big/b.rs", "--test big b::"),
        ("tests/tests/big/main.rs", "--test big "),
        ("tests/tests/big.rs", "--test big "),
    ] {
        let found = |rest: &str| found_in(path, &format!("# detect: {target}{rest}"));
        assert_eq!((found("early_one"), found("tests::late_one_runs")), (0, 0), "{path}");
        assert_eq!(found("tests::early_one"), 1, "{path}: the module of another test");
        assert_eq!(found("settled::late_one_runs"), 1, "{path}: a module that does not exist");
        assert_eq!(found("no_test_at"), 1, "{path}: a function that is not a test");
    }
    for name in ["x.txt", "epochs_not_checked.patch", "Epochs.patch"] {
        assert_eq!(invalid_mutations(&[File::new(&format!("{FOLDER}{name}"), "")]).len(), 1, "{name}");
    }
}
