//! Runs the tests that reach a mutant until one fails, and keeps the verdict.
//!
//! Verdicts are lines of JSON, written at once, so that an interrupted run resumes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::suite::{self, End, Normal, Test};
use crate::tree::Mutant;

/// The verdict of the tests on a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// A test failed.
    Caught,
    /// A test did not end in time.
    TimedOut,
    /// All tests that ran passed.
    Survived,
    /// No test executes the code.
    NotReached,
}

impl Verdict {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Caught, "caught"),
        (Self::TimedOut, "timeout"),
        (Self::Survived, "survived"),
        (Self::NotReached, "not reached"),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(verdict, _)| *verdict == self).map_or("", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(verdict, _)| *verdict)
    }

    pub(crate) fn is_missed(self) -> bool {
        matches!(self, Self::Survived | Self::NotReached)
    }
}

/// The verdicts so far, by the keys of the mutants.
pub(crate) struct Verdicts {
    file: File,
    pub(crate) known: BTreeMap<String, Verdict>,
    /// The number of mutants that each test caught in each file. Such a test runs first for other mutants of the file.
    catches: BTreeMap<(String, String), usize>,
}

impl Verdicts {
    /// Opens the file. The last line of a mutant is valid; `again` drops the verdicts of missed mutants.
    pub(crate) fn open(path: &Path, again: bool) -> Result<Self, String> {
        let failed = |error| format!("failed to open {}: {error}", path.display());
        let text = fs::read_to_string(path).unwrap_or_default();
        let file = File::options().append(true).create(true).open(path).map_err(failed)?;
        let mut verdicts = Self { file, known: BTreeMap::new(), catches: BTreeMap::new() };
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let verdict = line["verdict"].as_str().and_then(Verdict::named);
            let (Some(key), Some(verdict)) = (line["key"].as_str(), verdict) else { continue };
            verdicts.note(key, verdict, line["by"].as_str());
        }
        if again {
            verdicts.known.retain(|_, verdict| !verdict.is_missed());
        }
        Ok(verdicts)
    }

    fn note(&mut self, key: &str, verdict: Verdict, by: Option<&str>) {
        self.known.insert(key.to_owned(), verdict);
        if let Some(by) = by {
            *self.catches.entry((file_of(key), by.to_owned())).or_default() += 1;
        }
    }

    fn add(&mut self, mutant: &Mutant, trial: &Trial) -> Result<(), String> {
        self.note(&mutant.key, trial.verdict, trial.by.as_deref());
        let line = json!({
            "key": mutant.key,
            "line": mutant.line,
            "verdict": trial.verdict.name(),
            "by": trial.by,
            "tests": trial.tests,
            "unused": trial.unused,
            "seconds": trial.seconds,
        });
        writeln!(self.file, "{line}").map_err(|error| format!("failed to write a verdict: {error}"))
    }
}

fn file_of(key: &str) -> String {
    key.split(" | ").next().unwrap_or_default().to_owned()
}

/// The result of one mutant.
struct Trial {
    verdict: Verdict,
    by: Option<String>,
    tests: usize,
    /// The number of tests that reach the mutant and did not run because the budget was used.
    unused: usize,
    seconds: f64,
}

/// The tests and limits of a run.
pub(crate) struct Plan<'a> {
    pub(crate) tests: &'a [Test],
    pub(crate) normal: &'a BTreeMap<String, Normal>,
    pub(crate) scratch: &'a Path,
    pub(crate) jobs: usize,
    /// Seconds of normal time that the tests of one mutant may take.
    pub(crate) budget: f64,
    /// The moment after which no trial begins.
    pub(crate) until: Option<Instant>,
}

impl Plan<'_> {
    /// Tests the mutants without a verdict, several at a time.
    pub(crate) fn run(&self, mutants: &[&Mutant], verdicts: &Mutex<Verdicts>) -> Result<(), String> {
        let open: Vec<&Mutant> = {
            let verdicts = verdicts.lock().map_err(|error| error.to_string())?;
            mutants.iter().copied().filter(|mutant| !verdicts.known.contains_key(&mutant.key)).collect()
        };
        println!("  {} mutants, {} of them without a verdict", mutants.len(), open.len());
        suite::in_parallel(self.jobs, open.len(), |job, index| {
            let Some(mutant) = open.get(index) else { return Ok(()) };
            if self.until.is_some_and(|until| Instant::now() >= until) {
                return Ok(());
            }
            let order = {
                let verdicts = verdicts.lock().map_err(|error| error.to_string())?;
                self.order(mutant, &verdicts)
            };
            let trial = self.try_one(mutant, &order, job)?;
            let by = trial.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
            let Mutant { file, line, function, change, .. } = mutant;
            println!("  {:11} {file}:{line} {function}: {change}{by} ({:.0} s)", trial.verdict.name(), trial.seconds);
            verdicts.lock().map_err(|error| error.to_string())?.add(mutant, &trial)
        })
    }

    /// Returns the tests that reach a mutant, ordered by their catches in its file and their run time.
    fn order(&self, mutant: &Mutant, verdicts: &Verdicts) -> Vec<(&Test, f64)> {
        let mut reaching: Vec<(&Test, f64)> = Vec::new();
        for test in self.tests {
            if let Some(normal) = self.normal.get(&test.name)
                && normal.passed
                && normal.reached.contains(&mutant.number)
            {
                reaching.push((test, normal.seconds));
            }
        }
        let catches =
            |test: &Test| verdicts.catches.get(&(mutant.file.clone(), test.name.clone())).copied().unwrap_or(0);
        // The rank favors fast tests with many catches.
        let rank = |(test, seconds): &(&Test, f64)| seconds / (1.0 + catches(test) as f64 * 4.0);
        reaching.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        reaching
    }

    fn try_one(&self, mutant: &Mutant, order: &[(&Test, f64)], job: usize) -> Result<Trial, String> {
        let began = Instant::now();
        let scratch = suite::folder(self.scratch, job);
        let number = mutant.number.to_string();
        let mut used = 0.0;
        let mut trial = Trial { verdict: Verdict::NotReached, by: None, tests: 0, unused: order.len(), seconds: 0.0 };
        let mut flaky = BTreeSet::new();
        for (test, seconds) in order {
            if used > 0.0 && used + seconds > self.budget {
                break;
            }
            used += seconds;
            let limit = Duration::from_secs_f64(seconds * 5.0 + 20.0);
            let (end, _) = suite::run(test, &[("MUTANT", &number)], limit, &scratch)?;
            trial.tests += 1;
            trial.unused -= 1;
            trial.verdict = Verdict::Survived;
            if end == End::Passed {
                continue;
            }
            // A flaky test would catch every mutant, so the test must also pass without the mutant.
            if suite::run(test, &[("MUTANT", "0")], limit, &scratch)?.0 != End::Passed {
                flaky.insert(test.name.clone());
                continue;
            }
            trial.verdict = if end == End::TimedOut { Verdict::TimedOut } else { Verdict::Caught };
            trial.by = Some(test.name.clone());
            break;
        }
        for test in flaky {
            println!("  flaky, it also fails without a mutant: {test}");
        }
        trial.seconds = began.elapsed().as_secs_f64();
        Ok(trial)
    }
}
