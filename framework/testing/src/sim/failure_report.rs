//! Failure reports: the steps of a failing case, the violation, the steps of each actor, the trace, and the replay command.
//!
//! Called by [`Flow`](super::Flow) and at the end of a failed run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::committed_turn::{Cause, CommittedTurn, Phase};
use super::full_name::short_name;
use super::payload::{Payload, PayloadRenderer};
use whizbang_core::message::Envelope;
use whizbang_runtime::worker::{AttemptEnd, JobAttempt};

/// The variable that selects one case to replay.
pub(super) const REPLAY: &str = "WHIZBANG_SIM";
/// The variable that selects other seeds than those in the code.
pub(super) const SEEDS: &str = "WHIZBANG_SIM_SEEDS";
/// Number of lines shown from the end of a trace.
const TRACE_TAIL: usize = 150;
/// Number of lines shown from the start of a trace.
const TRACE_HEAD: usize = 50;

/// Returns a command that replays a case, from any folder of the workspace.
pub(super) fn replay(flow: &str, seed: u64, path: &str) -> String {
    let mut line = format!("{REPLAY}={flow}/{seed}/{path} cargo test");
    // Cargo names a test program after the test and a hash. The programs of libraries and binaries need no name.
    let program = std::env::current_exe().ok();
    let stem = program.as_deref().and_then(|program| program.file_stem()?.to_str());
    let in_tests = std::env::current_dir().unwrap_or_default().join("tests");
    if let Some((name, _)) = stem.and_then(|stem| stem.rsplit_once('-'))
        && (in_tests.join(name).with_extension("rs").is_file() || in_tests.join(name).join("main.rs").is_file())
    {
        let _ = write!(line, " --test {name}");
    }
    // The test harness names the thread after the test, except if only one thread runs tests.
    if let Some(test) = std::thread::current().name().filter(|name| *name != "main") {
        let _ = write!(line, " {test}");
    }
    line
}

/// Returns the trace, or its start and end if it is long.
pub(super) fn shorten_trace(trace: &str) -> String {
    let lines: Vec<_> = trace.lines().collect();
    let Some(left_out) = lines.len().checked_sub(TRACE_HEAD + TRACE_TAIL + 1) else { return lines.join("\n") };
    let beginning = lines.get(..TRACE_HEAD).unwrap_or_default().join("\n");
    let shown = lines.get(TRACE_HEAD + left_out + 1..).unwrap_or_default().join("\n");
    format!("{beginning}\n({} lines are left out)\n{shown}", left_out + 1)
}

/// Describes the steps of each actor and each worker, by actor and key, in the order of time.
pub(super) fn actor_steps(
    turns: &[CommittedTurn],
    attempts: &[JobAttempt],
    started_at: Instant,
    texts: &PayloadRenderer,
) -> String {
    // A worker's stream holds jobs of many keys; each job is listed under the key of its message.
    let keys: BTreeMap<_, _> = attempts.iter().map(|attempt| (attempt.message.id, &*attempt.message.key)).collect();
    let mut actors: BTreeMap<_, Vec<(Duration, String)>> = BTreeMap::new();
    for (attempt, line) in attempts.iter().zip(describe_attempts(attempts, texts)) {
        let lines = actors.entry((attempt.domain, attempt.worker, &*attempt.message.key)).or_default();
        lines.push((attempt.begun - started_at, line));
    }
    for turn in turns {
        let job = keys.get(&turn.id).filter(|_| turn.key.starts_with("shard-") || turn.key.starts_with("key-"));
        let lines = actors.entry((&*turn.domain, &*turn.actor, job.copied().unwrap_or(&turn.key))).or_default();
        lines.push((turn.at, describe_turn(turn, job.is_some(), texts)));
    }
    let mut text = String::new();
    for ((domain, actor, key), mut lines) in actors {
        lines.sort_by_key(|(at, _)| *at);
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {domain}.{actor} `{key}`");
        for (at, line) in lines {
            let _ = writeln!(text, "    {:>8.3} {line}", at.as_secs_f64());
        }
    }
    text
}

/// Describes a committed turn.
fn describe_turn(turn: &CommittedTurn, is_job: bool, texts: &PayloadRenderer) -> String {
    let phase = match turn.phase {
        Phase::Open => "",
        Phase::Compensating => " (while compensating)",
        Phase::Ended => " (after its end)",
    };
    let event = |event: &Payload| {
        let payload = texts.message(&format!("{}.{}", turn.domain, event.name), event);
        format!("{}{payload}", event.name)
    };
    let mut effects: Vec<_> = turn.records.iter().map(event).collect();
    effects.extend(Some(turn.effects()).filter(|effects| !effects.is_empty()));
    let effects = match effects.is_empty() {
        false => effects.join(", "),
        true if is_job => "committed".to_owned(),
        true => "nothing".to_owned(),
    };
    let payload = turn.payload.as_ref().map_or_else(String::new, |payload| match &turn.cause {
        Cause::Command(name) | Cause::Rejected(name, _) | Cause::Event(name) => texts.message(name, payload),
        Cause::Reply(name) => texts.reply(name, payload),
        Cause::Rejection(_) | Cause::Timer(_) => String::new(),
    });
    let cause = match &turn.cause {
        Cause::Rejected(name, code) => format!("{}{payload} rejected as {code}", short_name(name, &turn.domain)),
        cause => format!("{}{payload}", cause.describe(&turn.domain)),
    };
    format!("{cause}{phase} -> {effects}")
}

/// Describes the attempts of jobs: number, end, and whether the effect is a repetition.
fn describe_attempts<'a>(attempts: &'a [JobAttempt], texts: &'a PayloadRenderer) -> impl Iterator<Item = String> + 'a {
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
        let name = short_name_of(message, attempt.domain);
        format!("job {name}{payload}, attempt {} -> {end}{repeated}", attempt.number)
    })
}

/// Returns the name of a message, without its domain if that is `home`.
fn short_name_of(message: &Envelope, home: &str) -> String {
    if *message.domain == *home { message.name.to_string() } else { format!("{}.{}", message.domain, message.name) }
}
