//! Mutates the framework, one small change at a time, and runs the tests that reach each mutant.
//!
//! The program copies the repository to `target/mutate/tree`, writes every mutant into the copy behind a switch, builds all
//! tests once, records which test reaches which mutant, and runs each mutant with the tests that reach it, fastest first,
//! until one fails. See [`USAGE`] for its options.

mod build;
mod find;
mod replace;
mod report;
mod rewrite;
mod suite;
#[cfg(test)]
mod tests;
mod tree;
mod trial;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{env, fs};

use build::Selection;
use report::Equivalents;
use tree::{FOLDERS, Mutant, Tree};
use trial::{Plan, Verdicts};

const USAGE: &str = "\
cargo run --release --manifest-path tests/mutate/Cargo.toml -- [OPTION]...

  --folder NAME      only mutants of this module; may be repeated (default: inbox actor relay saga log store-embedded)
  --file PART        only mutants in files whose path contains this
  --sample N         only N mutants of those, chosen by the seed
  --seed N           chooses the sample (default 1)
  --jobs N           processes at a time (default 2)
  --budget SECONDS   tests of one mutant by their normal time (default 120)
  --minutes N        begin no mutant after this time; a later run resumes
  --again            try mutants again that were missed: after new tests
  --lib              use unit tests only: builds and runs less
  --package NAME     tests of this package only; may be repeated
  --test NAME        its unit tests and this integration test only; may be repeated
  --skip PART        no tests whose name contains this; may be repeated
  --no-run           build and stop
  --list             print the mutants and do nothing else
  --report           print the verdicts so far and do nothing else
  --below PERCENT    exit code 1 if more of the viable mutants were missed (default 100)
";

struct Options {
    folders: Vec<&'static str>,
    file: String,
    sample: usize,
    seed: u64,
    jobs: usize,
    budget: f64,
    minutes: Option<u64>,
    again: bool,
    selection: Selection,
    skip: Vec<String>,
    no_run: bool,
    list: bool,
    report: bool,
    below: f64,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            folders: Vec::new(),
            file: String::new(),
            sample: usize::MAX,
            seed: 1,
            jobs: 2,
            budget: 120.0,
            minutes: None,
            again: false,
            selection: Selection::default(),
            skip: Vec::new(),
            no_run: false,
            list: false,
            report: false,
            below: 100.0,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{word}` needs a value"));
            match word.as_str() {
                "--folder" => {
                    let name = value()?;
                    let known = FOLDERS.into_iter().find(|folder| *folder == name);
                    options.folders.push(known.ok_or_else(|| format!("the folder is one of {FOLDERS:?}"))?);
                }
                "--file" => options.file = value()?,
                "--sample" => options.sample = number(&value()?)?,
                "--seed" => options.seed = number(&value()?)?,
                "--jobs" => options.jobs = number(&value()?)?,
                "--budget" => options.budget = number(&value()?)?,
                "--minutes" => options.minutes = Some(number(&value()?)?),
                "--below" => options.below = number(&value()?)?,
                "--again" => options.again = true,
                "--lib" => options.selection.lib = true,
                "--package" => options.selection.packages.push(value()?),
                "--test" => options.selection.tests.push(value()?),
                "--skip" => options.skip.push(value()?),
                "--no-run" => options.no_run = true,
                "--list" => options.list = true,
                "--report" => options.report = true,
                _ => return Err(format!("unknown option `{word}`")),
            }
        }
        Ok(options)
    }

    /// Returns the mutants that the options select, in the order of their numbers.
    fn choose<'a>(&self, tree: &'a Tree, dropped: &BTreeSet<u32>) -> Vec<&'a Mutant> {
        let mut chosen: Vec<&Mutant> = tree.mutants.iter().collect();
        chosen.retain(|mutant| {
            (self.folders.is_empty() || self.folders.contains(&mutant.folder))
                && mutant.file.contains(&self.file)
                && !dropped.contains(&mutant.number)
        });
        // Selected by a hash, so that added or deleted mutants do not change the selection of the others.
        if self.sample < chosen.len() {
            chosen.sort_by_key(|mutant| tree::hash(&format!("{} {}", self.seed, mutant.key)));
            chosen.truncate(self.sample);
            chosen.sort_by_key(|mutant| mutant.number);
        }
        chosen
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number"))
}

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(missed) if missed <= options.below => ExitCode::SUCCESS,
        Ok(missed) => {
            eprintln!("{missed:.1} % of the viable mutants were missed, the limit is {} %", options.below);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns the share of viable mutants that were missed, in percent.
fn run(options: &Options) -> Result<f64, String> {
    let began = Instant::now();
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let top = top.canonicalize().map_err(|error| format!("failed to find the repository: {error}"))?;
    let base = top.join("target/mutate");
    let target = base.join("target");
    fs::create_dir_all(base.join("tree")).map_err(|error| format!("failed to create {}: {error}", base.display()))?;
    let tree = Tree::read(&top, base.join("tree"))?;
    let digest = tree.digest();
    let equivalents = fs::read_to_string(top.join("tests/mutate/equivalent.txt")).unwrap_or_default();
    let equivalents = Equivalents::read(&equivalents)?;
    for key in equivalents.stale(&tree.mutants) {
        println!("  equivalent.txt: entry without a mutant: {key}");
    }

    let dropped_path = base.join("dropped");
    let keep = |dropped: &BTreeSet<u32>| save_dropped(&dropped_path, &digest, dropped);
    let mut dropped = load_dropped(&dropped_path, &digest);
    if options.list {
        for mutant in options.choose(&tree, &dropped) {
            println!("{} {}:{} {}: {}", mutant.number, mutant.file, mutant.line, mutant.function, mutant.change);
        }
        return Ok(0.0);
    }
    let results = base.join("verdicts.jsonl");
    if options.report {
        let verdicts = Verdicts::open(&results, false)?;
        let (text, missed) = report::report(&options.choose(&tree, &dropped), &verdicts.known, &equivalents);
        println!("{text}");
        return Ok(missed);
    }

    println!("==> {} mutants: drop those that do not compile", tree.mutants.len());
    dropped = build::drop_what_does_not_compile(&tree, &target, dropped, keep)?;
    println!("==> {} viable mutants: build the tests", tree.mutants.len() - dropped.len());
    let programs = build::build(&tree, &target, &options.selection)?;
    if options.no_run {
        return Ok(0.0);
    }
    let scratch = Scratch(env::temp_dir().join(format!("mutate-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).map_err(|error| format!("failed to create {}: {error}", scratch.0.display()))?;
    println!("==> run each test without a mutant");
    let tests = suite::list(&programs, &target, &options.skip)?;
    let normal = suite::reach(&tests, &digest, &base.join("reached.json"), &scratch.0, options.jobs)?;
    println!("==> run each mutant with the tests that reach it");
    let verdicts = Mutex::new(Verdicts::open(&results, options.again)?);
    let until = options.minutes.map(|minutes| began + Duration::from_secs(minutes * 60));
    let plan =
        Plan { tests: &tests, normal: &normal, scratch: &scratch.0, jobs: options.jobs, budget: options.budget, until };
    let chosen = options.choose(&tree, &dropped);
    plan.run(&chosen, &verdicts)?;
    let verdicts = verdicts.into_inner().map_err(|error| error.to_string())?;
    let (text, missed) = report::report(&chosen, &verdicts.known, &equivalents);
    println!("\n{text}");
    Ok(missed)
}

/// A folder for the files of tests that is deleted at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn save_dropped(path: &Path, digest: &str, dropped: &BTreeSet<u32>) -> Result<(), String> {
    let numbers: Vec<String> = dropped.iter().map(u32::to_string).collect();
    fs::write(path, format!("{digest}\n{}\n", numbers.join("\n")))
        .map_err(|error| format!("failed to write {}: {error}", path.display()))
}

fn load_dropped(path: &Path, digest: &str) -> BTreeSet<u32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines();
    if lines.next() != Some(digest) {
        return BTreeSet::new();
    }
    lines.filter_map(|line| line.parse().ok()).collect()
}
