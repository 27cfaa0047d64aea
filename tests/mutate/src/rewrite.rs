//! Writes switches into the text of a file: the product as it is, and each mutant behind `crate::mutants::on(N)`.
//!
//! All changes are insertions within a line, so line numbers do not change. A mutant repeats the code around its change without
//! the switches in it, because a process enables one mutant at most.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::find::{Shape, Site};

/// A file with switches.
pub(crate) struct Rewritten {
    pub(crate) text: String,
    /// The bytes of `text` that belong to each mutant alone.
    own: Vec<(Range<usize>, u32)>,
    /// The bytes of `text` that each switch surrounds, with its mutants.
    around: Vec<(Range<usize>, Vec<u32>)>,
}

impl Rewritten {
    /// Returns the mutants that cause an error in these bytes: the one with this code, otherwise those of the innermost switch.
    pub(crate) fn blamed(&self, bytes: &Range<usize>) -> Vec<u32> {
        let holds = |range: &Range<usize>| range.start <= bytes.start && bytes.end <= range.end;
        if let Some((_, mutant)) = self.own.iter().find(|(range, _)| holds(range)) {
            return vec![*mutant];
        }
        let inner = self.around.iter().filter(|(range, _)| holds(range)).min_by_key(|(range, _)| range.len());
        inner.map(|(_, mutants)| mutants.clone()).unwrap_or_default()
    }
}

/// One insertion. The order of those at one byte: ends from the inside, then beginnings from the outside.
struct Insertion {
    at: usize,
    rank: (u8, usize, usize),
    site: usize,
}

/// Inserts the mutants of `sites`, numbered from `first` in their order, without those in `dropped`.
pub(crate) fn rewrite(source: &str, sites: &[Site], first: u32, dropped: &BTreeSet<u32>) -> Rewritten {
    let mut next = first;
    let mut kept: Vec<Vec<(u32, &str)>> = Vec::new();
    for site in sites {
        let numbered = site.changes.iter().map(|change| {
            next += 1;
            (next - 1, change.code.as_str())
        });
        kept.push(numbered.filter(|(number, _)| !dropped.contains(number)).collect());
    }
    let mut insertions = Vec::new();
    for (site, _) in kept.iter().enumerate().filter(|(_, kept)| !kept.is_empty()) {
        match &sites[site].shape {
            Shape::Wrap(range) => {
                let length = range.len();
                insertions.push(Insertion { at: range.start, rank: (3, usize::MAX - length, site), site });
                insertions.push(Insertion { at: range.end, rank: (0, length, usize::MAX - site), site });
            }
            Shape::Arm(at) => insertions.push(Insertion { at: *at, rank: (1, 0, site), site }),
            Shape::Body(at) => insertions.push(Insertion { at: *at, rank: (2, 0, site), site }),
        }
    }
    insertions.sort_by_key(|insertion| (insertion.at, insertion.rank));

    let mut out = Rewritten { text: String::new(), own: Vec::new(), around: Vec::new() };
    let mut begun = vec![0; sites.len()];
    let mut copied = 0;
    for Insertion { at, rank, site } in insertions {
        out.text.push_str(&source[copied..at]);
        copied = at;
        let start = out.text.len();
        let mutants: Vec<u32> = kept[site].iter().map(|(number, _)| *number).collect();
        match rank.0 {
            0 => {
                out.text.push_str(" })");
                out.around.push((begun[site]..out.text.len(), mutants));
            }
            1 => {
                for (number, _) in &kept[site] {
                    out.text.push_str(&format!(" if !crate::mutants::on({number})"));
                }
                out.around.push((start..out.text.len(), mutants));
            }
            2 => {
                for (number, code) in &kept[site] {
                    let start = out.text.len();
                    out.text.push_str(&format!(" if crate::mutants::on({number}) {{ {code} }}"));
                    out.own.push((start..out.text.len(), *number));
                }
            }
            _ => {
                begun[site] = start;
                out.text.push('(');
                for (number, code) in &kept[site] {
                    out.text.push_str(&format!("if crate::mutants::on({number}) {{ "));
                    let start = out.text.len();
                    out.text.push_str(code);
                    out.own.push((start..out.text.len(), *number));
                    out.text.push_str(" } else ");
                }
                out.text.push_str("{ ");
            }
        }
    }
    out.text.push_str(&source[copied..]);
    out
}

/// The module `crate::mutants`. MUTANT selects at most one mutant for the process. With MUTANTS_REACHED the process appends the
/// number of each mutant to that file when it first reaches it, so that a killed process has written its numbers, too.
pub(crate) const SWITCH: &str = r#"//! Which mutant this process has.
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

const NONE: u32 = 0;
const UNKNOWN: u32 = u32::MAX;
const RECORDS: u32 = u32::MAX - 1;
static MUTANT: AtomicU32 = AtomicU32::new(UNKNOWN);
static REACHED: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];
static FILE: std::sync::Mutex<Option<std::fs::File>> = std::sync::Mutex::new(None);

#[inline(always)]
pub fn on(number: u32) -> bool {
    let mutant = MUTANT.load(Relaxed);
    if mutant == NONE { return false; }
    mutant == number || (mutant >= RECORDS && first(number))
}

#[cold]
fn first(number: u32) -> bool {
    if MUTANT.load(Relaxed) == UNKNOWN {
        let mutant = std::env::var("MUTANT").ok().and_then(|text| text.parse().ok());
        if let (None, Some(path)) = (mutant, std::env::var_os("MUTANTS_REACHED")) {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
            if let (Ok(mut kept), Ok(file)) = (FILE.lock(), file) { *kept = Some(file); }
            MUTANT.store(RECORDS, Relaxed);
        } else {
            MUTANT.store(mutant.unwrap_or(NONE), Relaxed);
            return mutant == Some(number);
        }
    }
    if let Some(reached) = REACHED.get(number as usize) && !reached.swap(true, Relaxed) {
        if let Ok(mut file) = FILE.lock() && let Some(file) = &mut *file {
            let _ = file.write_all(format!("{number}\n").as_bytes());
        }
    }
    false
}
"#;
