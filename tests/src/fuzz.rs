//! Fuzzes a decoder with corrupted input and finds panics, stack overflows and hangs.
//!
//! Needs no nightly compiler and no instrumentation: it mutates valid samples from a fixed seed, so every run is the same. An input
//! that the decoder still accepts becomes a sample, so mutations accumulate.
//! A failing input is shrunk and printed. Saved as a file in `tests/corpus/<name>/`, it is tried first in all later runs.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;

use crate::long::brief_or_long;

/// The stack size of a decoder: hostile bytes must not cause unbounded recursion.
const STACK_BYTES: usize = 512 * 1024;

/// The maximum size of an input in bytes.
const INPUT_BYTES: usize = 16 * 1024;

/// The maximum number of accepted inputs that are kept as samples.
const MAX_SAMPLES: usize = 64;

/// The maximum number of attempts to shrink an input.
const MAX_SHRINKS: usize = 2_000;

/// The time limit of one input; a decoder takes microseconds.
const INPUT_TIMEOUT: Duration = Duration::from_secs(20);

/// The name of the thread whose panics are expected.
const THREAD: &str = "fuzz";

/// A search for inputs that break a decoder.
#[derive(Clone, Debug)]
pub struct Fuzz {
    name: &'static str,
    samples: Vec<Vec<u8>>,
    rounds: u64,
}

/// The outcome of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The number of accepted inputs.
    pub accepted: u64,
    /// The number of refused inputs.
    pub refused: u64,
}

impl Fuzz {
    /// Returns a search that starts from valid `samples` and from the files in `tests/corpus/<name>/`, which contain hex.
    ///
    /// # Panics
    /// If there is no sample, or a file is not hex.
    pub fn new(name: &'static str, samples: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut samples: Vec<Vec<u8>> = samples.into_iter().collect();
        samples.extend(corpus_inputs(&corpus(name)));
        assert!(!samples.is_empty(), "{name}: no sample to corrupt");
        Self { name, samples, rounds: brief_or_long(100_000, 2_000_000) }
    }

    /// Sets the number of inputs. By default 100,000, and 2,000,000 under `tests/run --long`.
    pub fn rounds(mut self, brief: u64, long: u64) -> Self {
        self.rounds = brief_or_long(brief, long);
        self
    }

    /// Runs `accepts` on inputs. It returns true if the input was accepted, and panics if a property does not hold.
    ///
    /// # Panics
    /// If `accepts` panics, with the shortest such input that was found; and if no input was accepted or none was refused, because
    /// then the search has tested nothing.
    pub fn run(self, accepts: impl Fn(&[u8]) -> bool + Send + 'static) -> Outcome {
        let name = self.name;
        hide_expected_panics();
        let trying = Arc::new(Mutex::new(Vec::new()));
        let (beat, beats) = mpsc::channel();
        let search = {
            let trying = Arc::clone(&trying);
            let thread = thread::Builder::new().name(THREAD.to_owned()).stack_size(STACK_BYTES);
            thread.spawn(move || self.search(&accepts, &trying, &beat)).expect("a thread can be started")
        };
        loop {
            match beats.recv_timeout(INPUT_TIMEOUT) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let input = trying.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    panic!(
                        "{name}: {}",
                        describe_failure(name, &input, &format!("take longer than {INPUT_TIMEOUT:?}"))
                    );
                }
            }
        }
        match search.join().expect("the search itself does not panic") {
            Ok(outcome) => {
                assert!(outcome.accepted > 0 && outcome.refused > 0, "{name}: nothing was searched: {outcome:?}");
                outcome
            }
            Err((input, panic)) => {
                panic!("{name}: {}", describe_failure(name, &input, &format!("make it panic: {panic}")))
            }
        }
    }

    /// Tries inputs. Stores the current one in `trying` and sends a `beat` after each.
    fn search(
        mut self,
        accepts: &dyn Fn(&[u8]) -> bool,
        trying: &Mutex<Vec<u8>>,
        beat: &Sender<()>,
    ) -> Result<Outcome, (Vec<u8>, String)> {
        let random = IdSource::seeded(Clock::manual(Timestamp::default()).0, 0x5EED);
        let given = self.samples.len();
        let mut outcome = Outcome { accepted: 0, refused: 0 };
        let whole: Vec<Vec<u8>> = self.samples.clone();
        let mutated = (0..self.rounds).map(|_| None);
        for input in whole.into_iter().map(Some).chain(mutated) {
            let (input, is_mutated) = match input {
                Some(input) => (input, false),
                None => (mutate(&self.samples, &random), true),
            };
            trying.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&input);
            let tried = attempt(accepts, &input);
            // The receiver is gone if an input took too long.
            let _ = beat.send(());
            match tried {
                Ok(true) => {
                    outcome.accepted += 1;
                    if is_mutated && self.samples.len() < given + MAX_SAMPLES {
                        self.samples.push(input);
                    } else if is_mutated {
                        let at = given + at(&random, MAX_SAMPLES);
                        self.samples[at] = input;
                    }
                }
                Ok(false) => outcome.refused += 1,
                Err(panic) => return Err(shrink(accepts, input, panic)),
            }
        }
        Ok(outcome)
    }
}

/// Returns a random index below `bound`.
fn at(random: &IdSource, bound: usize) -> usize {
    random.below(bound as u64) as usize
}

/// Returns the result of `accepts`, or the text of its panic.
fn attempt(accepts: &dyn Fn(&[u8]) -> bool, input: &[u8]) -> Result<bool, String> {
    panic::catch_unwind(AssertUnwindSafe(|| accepts(input))).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
    })
}

/// Returns a sample with one or a few mutations.
fn mutate(samples: &[Vec<u8>], random: &IdSource) -> Vec<u8> {
    let mut input = samples[at(random, samples.len())].clone();
    for _ in 0..=at(random, 4) {
        mutate_once(&mut input, samples, random);
    }
    input.truncate(INPUT_BYTES);
    input
}

fn mutate_once(input: &mut Vec<u8>, samples: &[Vec<u8>], random: &IdSource) {
    // Bytes at the boundaries of encodings: ends of ranges, prefixes of long integers, quotes and braces.
    const BOUNDARY_BYTES: [u8; 20] =
        [0, 1, 2, 0x7F, 0x80, 0x81, 0xFE, 0xFF, 250, 251, 252, 253, b'"', b'\\', b'{', b'[', b'}', b'\n', b'-', b'.'];
    let place = at(random, input.len() + 1);
    let end = place + at(random, (input.len() - place).min(64) + 1);
    match random.below(10) {
        0 => input.truncate(place),
        1 => drop(input.drain(place..end)),
        2 if place < input.len() => input[place] ^= 1 << random.below(8),
        3 if place < input.len() => input[place] = BOUNDARY_BYTES[at(random, BOUNDARY_BYTES.len())],
        4 => input.insert(place, BOUNDARY_BYTES[at(random, BOUNDARY_BYTES.len())]),
        5 => drop(
            input
                .splice(place..end, std::iter::repeat_n(BOUNDARY_BYTES[at(random, BOUNDARY_BYTES.len())], end - place)),
        ),
        // Duplicate a part: lists grow, braces nest.
        6 => {
            let part = input[place..end].to_vec();
            let times = 1 + at(random, 8);
            drop(input.splice(place..place, part.repeat(times)));
        }
        // Insert a number that is too large for the following bytes, in either byte order.
        7 => {
            let number = u64::MAX >> random.below(64);
            let bytes = if random.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
            let width = [1, 2, 4, 8][at(random, 4)];
            let bytes = if random.below(2) == 0 { &bytes[..width] } else { &bytes[8 - width..] };
            let end = (place + width).min(input.len());
            drop(input.splice(place..end, bytes.iter().copied()));
        }
        // Append the rest of another sample.
        8 => {
            let other = &samples[at(random, samples.len())];
            input.truncate(place);
            input.extend_from_slice(&other[at(random, other.len() + 1)..]);
        }
        _ => {
            for byte in &mut input[place..end] {
                *byte = random.next_u64() as u8;
            }
        }
    }
}

/// Returns the shortest input found that still panics, with the text of the panic.
fn shrink(accepts: &dyn Fn(&[u8]) -> bool, mut input: Vec<u8>, mut panic: String) -> (Vec<u8>, String) {
    let mut tries = MAX_SHRINKS;
    let mut length = input.len().next_power_of_two();
    while length > 0 && tries > 0 {
        let mut place = 0;
        while place < input.len() && tries > 0 {
            let mut shorter = input.clone();
            shorter.drain(place..(place + length).min(input.len()));
            tries -= 1;
            match attempt(accepts, &shorter) {
                Err(text) => (input, panic) = (shorter, text),
                Ok(_) => place += length,
            }
        }
        length /= 2;
    }
    (input, panic)
}

/// Describes a failing input, and the command that saves it.
fn describe_failure(name: &str, input: &[u8], wrong: &str) -> String {
    let file: String = wrong.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    format!("{} bytes {wrong}\nSave them: printf {} > tests/corpus/{name}/{file}.hex", input.len(), hex(input))
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

/// Returns the inputs saved in a folder, in the order of their file names; none if there is no such folder.
fn corpus_inputs(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a folder can be read").path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        unhex(&text).unwrap_or_else(|| panic!("{} is not hex", path.display()))
    };
    paths.iter().map(read).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect())
}

/// Hides expected panics from the output: the relevant one is part of the failure text.
fn hide_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if thread::current().name() != Some(THREAD) {
                before(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn injected_panic_is_found_and_shrunk() {
        // Accepts a length and that many bytes; trusts a length of 0xFF.
        let decode = |input: &[u8]| match input.split_first() {
            Some((0xFF, rest)) => rest[254] == 0,
            Some((length, rest)) => rest.len() == usize::from(*length),
            None => false,
        };
        let search = Fuzz::new("injected", [vec![3, 1, 2, 3], vec![0]]).rounds(20_000, 20_000);
        let failed = panic::catch_unwind(|| search.run(decode)).unwrap_err();
        let said = failed.downcast_ref::<String>().unwrap();
        assert!(said.contains("injected: 1 bytes make it panic") && said.contains("printf ff >"), "{said}");
    }

    #[test]
    fn sound_decoder_passes_deterministically() {
        let decode =
            |input: &[u8]| input.split_first().is_some_and(|(length, rest)| rest.len() == usize::from(*length));
        let run = || Fuzz::new("sound", [vec![3, 1, 2, 3], vec![0]]).rounds(5_000, 5_000).run(decode);
        assert_eq!(run(), run());
    }

    #[test]
    #[should_panic(expected = "nothing was searched")]
    fn search_without_accepted_input_fails() {
        Fuzz::new("deaf", [vec![1]]).rounds(100, 100).run(|_| false);
    }

    #[test]
    fn hex_round_trips() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unhex(&hex(&all)), Some(all));
        assert_eq!(unhex("0 1\n"), Some(vec![1]));
        assert_eq!(unhex("123"), None);
        assert_eq!(unhex("xy"), None);
    }
}
