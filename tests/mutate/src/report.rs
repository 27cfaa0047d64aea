//! The table of verdicts and the list of survivors, without the mutants that change no behavior.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::tree::{FOLDERS, Mutant};
use crate::trial::Verdict;

/// Mutants that no test can distinguish from the product, with the reason: the lines of `equivalent.txt`.
pub(crate) struct Equivalents(BTreeMap<String, String>);

impl Equivalents {
    /// Reads lines `file | function | change | reason`; empty ones and those that begin with `#` are comments.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut equivalents = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            match line.rsplit_once(" | ") {
                Some((key, reason)) if key.matches(" | ").count() >= 2 && !reason.trim().is_empty() => {
                    equivalents.insert(key.trim().to_owned(), reason.trim().to_owned());
                }
                _ => return Err(format!("not `file | function | change | reason`: {line}")),
            }
        }
        Ok(Self(equivalents))
    }

    pub(crate) fn contains(&self, mutant: &Mutant) -> bool {
        self.0.contains_key(&mutant.key)
    }

    /// Returns the entries without a mutant, whose code has changed.
    pub(crate) fn stale<'a>(&'a self, mutants: &[Mutant]) -> Vec<&'a str> {
        let is_key = |key: &String| mutants.iter().any(|mutant| mutant.key == *key);
        self.0.keys().filter(|key| !is_key(key)).map(String::as_str).collect()
    }
}

/// Counts of one folder.
#[derive(Clone, Copy, Default)]
struct Row {
    caught: usize,
    timed_out: usize,
    survived: usize,
    not_reached: usize,
    equivalent: usize,
}

impl Row {
    fn viable(&self) -> usize {
        self.caught + self.timed_out + self.survived + self.not_reached
    }

    fn missed(&self) -> usize {
        self.survived + self.not_reached
    }

    fn count(&mut self, verdict: Verdict, is_equivalent: bool) {
        match verdict {
            Verdict::Caught => self.caught += 1,
            Verdict::TimedOut => self.timed_out += 1,
            _ if is_equivalent => self.equivalent += 1,
            Verdict::Survived => self.survived += 1,
            Verdict::NotReached => self.not_reached += 1,
        }
    }
}

/// Returns the text of a report, and the share of viable mutants that no test caught, in percent.
pub(crate) fn report(
    mutants: &[&Mutant],
    verdicts: &BTreeMap<String, Verdict>,
    equivalents: &Equivalents,
) -> (String, f64) {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut all = Row::default();
    let mut missed = String::new();
    for mutant in mutants {
        let Some(verdict) = verdicts.get(&mutant.key) else { continue };
        let is_equivalent = equivalents.contains(mutant);
        rows.entry(mutant.folder).or_default().count(*verdict, is_equivalent);
        all.count(*verdict, is_equivalent);
        if verdict.is_missed() && !is_equivalent {
            let Mutant { file, line, function, change, .. } = mutant;
            let _ = writeln!(missed, "{:11} {file}:{line} {function}: {change}", verdict.name());
        }
    }
    let share = |row: &Row| 100.0 * row.missed() as f64 / row.viable().max(1) as f64;
    let mut text = String::from("folder     viable  caught  timeout  survived  not reached  missed  equivalent\n");
    let named = FOLDERS.iter().filter_map(|folder| rows.get(folder).map(|row| (*folder, *row)));
    for (folder, row) in named.chain([("all", all)]) {
        let _ = writeln!(
            text,
            "{folder:10} {:6}  {:6}  {:7}  {:8}  {:11}  {:5.1}%  {:10}",
            row.viable(),
            row.caught,
            row.timed_out,
            row.survived,
            row.not_reached,
            share(&row),
            row.equivalent
        );
    }
    if !missed.is_empty() {
        let _ = write!(text, "\n{missed}");
    }
    (text, share(&all))
}
