//! A failing case as people read it: what was done, what broke, what each actor did, what fell, and how to see it again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::payload::{Payload, Texts};
use super::step_log::{Cause, Phase, Taken, short};
use crate::message::Envelope;
use crate::worker::{AttemptEnd, JobAttempt};

/// The variable that names one case to play again.
pub(super) const REPLAY: &str = "WHIZBANG_SIM";
/// The variable that names the seeds to check instead of those in the code.
pub(super) const SEEDS: &str = "WHIZBANG_SIM_SEEDS";
/// How many lines of the end of what happened are shown.
const SHOWN: usize = 150;
/// How many lines of its beginning.
const BEGINNING: usize = 50;

/// The line that plays a case again, from any folder of the workspace.
pub(super) fn replay(flow: &str, seed: u64, path: &str) -> String {
    let mut line = format!("{REPLAY}={flow}/{seed}/{path} cargo test");
    // Cargo calls a test program by its name and a hash; library tests and programs are found without their name.
    let program = std::env::current_exe().ok();
    let stem = program.as_deref().and_then(|program| program.file_stem()?.to_str());
    let in_tests = std::env::current_dir().unwrap_or_default().join("tests");
    if let Some((name, _)) = stem.and_then(|stem| stem.rsplit_once('-'))
        && (in_tests.join(name).with_extension("rs").is_file() || in_tests.join(name).join("main.rs").is_file())
    {
        let _ = write!(line, " --test {name}");
    }
    // The test harness names the thread of a test after it, unless it runs all on its own.
    if let Some(test) = std::thread::current().name().filter(|name| *name != "main") {
        let _ = write!(line, " {test}");
    }
    line
}

/// What happened: all of it if it is short, or how it began and how it ended.
pub(super) fn ending(trace: &str) -> String {
    let lines: Vec<_> = trace.lines().collect();
    let Some(left_out) = lines.len().checked_sub(BEGINNING + SHOWN + 1) else { return lines.join("\n") };
    let beginning = lines.get(..BEGINNING).unwrap_or_default().join("\n");
    let shown = lines.get(BEGINNING + left_out + 1..).unwrap_or_default().join("\n");
    format!("{beginning}\n({} lines are left out)\n{shown}", left_out + 1)
}

/// What each actor and each worker did, by actor and key, in the order of time.
pub(super) fn deeds(turns: &[Taken], attempts: &[JobAttempt], began: Instant, texts: &Texts) -> String {
    // A worker's stream holds the jobs of many keys: here each stands with the key of its message.
    let keys: BTreeMap<_, _> = attempts.iter().map(|attempt| (attempt.message.id, &*attempt.message.key)).collect();
    let mut actors: BTreeMap<_, Vec<(Duration, String)>> = BTreeMap::new();
    for (attempt, line) in attempts.iter().zip(tries(attempts, texts)) {
        let lines = actors.entry((attempt.domain, attempt.worker, &*attempt.message.key)).or_default();
        lines.push((attempt.begun - began, line));
    }
    for turn in turns {
        let job = keys.get(&turn.id).filter(|_| turn.key.starts_with("shard-") || turn.key.starts_with("key-"));
        let lines = actors.entry((&*turn.domain, &*turn.actor, job.copied().unwrap_or(&turn.key))).or_default();
        lines.push((turn.at, told(turn, job.is_some(), texts)));
    }
    let mut text = String::new();
    for ((domain, actor, key), mut lines) in actors {
        lines.sort_by_key(|(at, _)| *at);
        // Writing into a text does not fail.
        let _ = writeln!(text, "  {domain}.{actor} `{key}`");
        for (at, line) in lines {
            let _ = writeln!(text, "    {:>8.3} {line}", at.as_secs_f64());
        }
    }
    text
}

/// A committed turn.
fn told(turn: &Taken, is_job: bool, texts: &Texts) -> String {
    let late = match turn.phase {
        Phase::Open => "",
        Phase::Undoing => " (while it undoes)",
        Phase::Ended => " (after its end)",
    };
    let event = |event: &Payload| {
        let payload = texts.message(&format!("{}.{}", turn.domain, event.name), event);
        format!("{}{payload}", event.name)
    };
    let mut came: Vec<_> = turn.records.iter().map(event).collect();
    came.extend(Some(turn.effects()).filter(|effects| !effects.is_empty()));
    let came = match came.is_empty() {
        false => came.join(", "),
        true if is_job => "committed".to_owned(),
        true => "nothing".to_owned(),
    };
    let payload = turn.payload.as_ref().map_or_else(String::new, |payload| match &turn.cause {
        Cause::Command(name) | Cause::Rejected(name, _) | Cause::Event(name) => texts.message(name, payload),
        Cause::Reply(name) => texts.reply(name, payload),
        Cause::Rejection(_) | Cause::Timer(_) => String::new(),
    });
    let cause = match &turn.cause {
        Cause::Rejected(name, code) => format!("{}{payload} rejected as {code}", short(name, &turn.domain)),
        cause => format!("{}{payload}", cause.told(&turn.domain)),
    };
    format!("{cause}{late} -> {came}")
}

/// The attempts of jobs: the number of each, how it ended, and whether its effect had been done before.
fn tries<'a>(attempts: &'a [JobAttempt], texts: &'a Texts) -> impl Iterator<Item = String> + 'a {
    let mut done = BTreeSet::new();
    attempts.iter().map(move |attempt| {
        let message = &attempt.message;
        let payload = texts.message(&format!("{}.{}", message.domain, message.name), &Payload::of(message));
        let end = match (&attempt.end, attempt.effect) {
            (Some((_, AttemptEnd::Done)), _) => "done".to_owned(),
            (Some((_, AttemptEnd::Rejected)), _) => "rejected".to_owned(),
            (Some((_, AttemptEnd::Failed(text))), None) => format!("failed: {text}"),
            (Some((_, AttemptEnd::Failed(text))), Some(_)) => format!("failed after its effect: {text}"),
            (None, None) => "its process ended".to_owned(),
            (None, Some(_)) => "its process ended after its effect".to_owned(),
        };
        let repeated = if attempt.effect.is_some() && done.contains(&message.id) {
            ", once more: its effect was done before"
        } else {
            ""
        };
        if attempt.effect.is_some() {
            done.insert(message.id);
        }
        let name = short_of(message, attempt.domain);
        format!("job {name}{payload}, attempt {} -> {end}{repeated}", attempt.number)
    })
}

/// The name of a message, without its domain if that is `home`.
fn short_of(message: &Envelope, home: &str) -> String {
    if *message.domain == *home { message.name.to_string() } else { format!("{}.{}", message.domain, message.name) }
}
