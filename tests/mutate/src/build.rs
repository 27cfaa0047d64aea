//! Builds the copy: drops the mutants that do not compile, then builds every test.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rewrite::Rewritten;
use crate::tree::Tree;

/// The features of all tests of this repository, so that nothing is built twice.
const ALL: [&str; 3] = ["--workspace", "--all-features", "--locked"];

/// Rounds after which mutants that do not compile must have been found.
const ROUNDS: usize = 60;

/// A program with tests.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Package and target.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    /// The folder of its package, where it runs.
    pub(crate) folder: PathBuf,
}

fn cargo(tree: &Tree, target: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(&tree.copy).env("CARGO_TARGET_DIR", target).env_remove("MUTANT").stdin(Stdio::null());
    // The environment that cargo sets for this program must not reach the copy, or build scripts that read it rerun each time.
    for (name, _) in env::vars_os().filter(|(name, _)| is_about_this_program(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    // Line numbers of backtraces are not needed. Without debug information a build takes half the disk space.
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    command
}

fn is_about_this_program(name: &str) -> bool {
    name.starts_with("CARGO_MANIFEST") || name.starts_with("CARGO_PKG")
}

/// Runs cargo and returns its messages, and whether it succeeded.
fn messages(mut command: Command) -> Result<(Vec<Value>, bool), String> {
    let output = command.arg("--message-format=json").stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("failed to run cargo: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok((text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect(), output.status.success()))
}

/// Writes and compiles the copy until all remaining mutants compile. Returns the dropped ones.
pub(crate) fn drop_what_does_not_compile(
    tree: &Tree,
    target: &Path,
    mut dropped: BTreeSet<u32>,
    keep: impl Fn(&BTreeSet<u32>) -> Result<(), String>,
) -> Result<BTreeSet<u32>, String> {
    for round in 1..=ROUNDS {
        let files = tree.write(&dropped)?;
        let mut command = cargo(tree, target);
        command.args(["check", "-p", "whizbang", "--lib", "--all-features", "--locked"]);
        let (messages, success) = messages(command)?;
        if success {
            return Ok(dropped);
        }
        let errors = messages.iter().filter(|line| line["message"]["level"] == "error").map(|line| &line["message"]);
        let errors: Vec<&Value> = errors.collect();
        let before = dropped.len();
        for error in &errors {
            dropped.extend(blamed(error, &files));
        }
        println!("  round {round}: {} errors, {} mutants that do not compile", errors.len(), dropped.len());
        // A fault of this program or of its switch is blamed on every mutant that an error touches.
        if dropped.len() * 2 > tree.mutants.len() {
            let text = errors.iter().filter_map(|error| error["rendered"].as_str()).take(3).collect::<String>();
            return Err(format!("more than half of the mutants do not compile; the first errors are:\n{text}"));
        }
        keep(&dropped)?;
        if dropped.len() == before {
            let text = errors.iter().filter_map(|error| error["rendered"].as_str()).collect::<String>();
            return Err(format!("failed to compile the copy, and no mutant is the cause:\n{text}"));
        }
    }
    Err(format!("mutants that do not compile remain after {ROUNDS} rounds"))
}

/// Returns the mutants that cause an error: those at its primary spans, otherwise those at its other spans.
fn blamed(error: &Value, files: &BTreeMap<String, Rewritten>) -> BTreeSet<u32> {
    let by = |primary: bool| -> BTreeSet<u32> {
        let children = error["children"].as_array().into_iter().flatten().filter(|_| !primary);
        let children = children.flat_map(|child| child["spans"].as_array().into_iter().flatten());
        let spans = error["spans"].as_array().into_iter().flatten().filter(|span| span["is_primary"] == primary);
        spans
            .chain(children)
            .filter_map(|span| {
                let file = files.get(span["file_name"].as_str()?)?;
                let byte = |name: &str| span[name].as_u64().and_then(|byte| usize::try_from(byte).ok());
                Some(file.blamed(&(byte("byte_start")?..byte("byte_end")?)))
            })
            .flatten()
            .collect()
    };
    let primary = by(true);
    if primary.is_empty() { by(false) } else { primary }
}

/// The programs with tests that are built: all if nothing is selected.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) packages: Vec<String>,
    /// The unit tests alone, with [`tests`](Self::tests).
    pub(crate) lib: bool,
    /// These integration tests alone, with the unit tests.
    pub(crate) tests: Vec<String>,
}

impl Selection {
    /// The arguments of `cargo test`.
    fn arguments(&self) -> Vec<&str> {
        let mut arguments = ALL.to_vec();
        if !self.packages.is_empty() {
            arguments.retain(|argument| *argument != "--workspace");
            arguments.extend(self.packages.iter().flat_map(|package| ["--package", package]));
        }
        if !self.is_everything() {
            arguments.push("--lib");
        }
        arguments.extend(self.tests.iter().flat_map(|test| ["--test", test]));
        arguments
    }

    /// Returns whether the integration tests are built that run programs.
    fn is_everything(&self) -> bool {
        !self.lib && self.tests.is_empty()
    }
}

/// Builds the selected tests and the programs of the copy, and returns the programs with tests.
pub(crate) fn build(tree: &Tree, target: &Path, selection: &Selection) -> Result<Vec<Program>, String> {
    let mut command = cargo(tree, target);
    command.args(["test", "--no-run"]).args(selection.arguments());
    let (lines, success) = messages(command)?;
    if !success {
        let errors = lines.iter().map(|line| &line["message"]).filter(|message| message["level"] == "error");
        let text = errors.filter_map(|error| error["rendered"].as_str()).collect::<String>();
        return Err(format!("failed to build the tests of the copy:\n{text}"));
    }
    // Build the programs that tests run in advance, so that no test waits for the compiler.
    let mut bins = cargo(tree, target);
    bins.args(["build", "--bins"]).args(ALL);
    if selection.is_everything() && !messages(bins)?.1 {
        return Err("the programs of the copy do not build".to_owned());
    }
    let programs = lines.iter().filter(|line| line["profile"]["test"] == true).filter_map(|line| {
        let manifest = Path::new(line["manifest_path"].as_str()?);
        let folder = manifest.parent()?.to_owned();
        let package = folder.file_name()?.to_string_lossy().into_owned();
        let name = format!("{package}/{}", line["target"]["name"].as_str()?);
        Some(Program { name, path: line["executable"].as_str()?.into(), folder })
    });
    Ok(programs.collect())
}
