//! The tests: their names, the mutants that each reaches, and their run times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::build::Program;

/// Programs whose tests read source code or compile other code, and so cannot detect a mutant.
const NOT_ABOUT_BEHAVIOR: [&str; 3] = ["tests/tidy", "whizbang/ui", "macros/whizbang_macros"];

/// A test that takes longer than this without a mutant is not used.
const LONGEST: Duration = Duration::from_secs(120);

/// One test.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) name: String,
    program: Program,
    filter: String,
    /// The target folder, for tests that run cargo.
    target: PathBuf,
}

/// The run of a test without a mutant.
#[derive(Clone, Debug)]
pub(crate) struct Normal {
    pub(crate) passed: bool,
    pub(crate) seconds: f64,
    pub(crate) reached: BTreeSet<u32>,
}

/// The outcome of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Passed,
    Failed,
    TimedOut,
}

/// Lists the tests of all programs, without those whose name contains a part in `skip`.
pub(crate) fn list(programs: &[Program], target: &Path, skip: &[String]) -> Result<Vec<Test>, String> {
    let mut tests = Vec::new();
    for program in programs.iter().filter(|program| !NOT_ABOUT_BEHAVIOR.contains(&program.name.as_str())) {
        let listed = Command::new(&program.path).args(["--list", "--format", "terse"]).output();
        let listed = listed.map_err(|error| format!("failed to list {}: {error}", program.path.display()))?;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let Some(filter) = line.strip_suffix(": test") else { continue };
            let name = format!("{} {filter}", program.name);
            if !skip.iter().any(|part| name.contains(part)) {
                let (program, filter, target) = (program.clone(), filter.to_owned(), target.to_owned());
                tests.push(Test { name, program, filter, target });
            }
        }
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// Runs one test in its own process with the variables `with`. Its files go to `scratch`, which is emptied first.
pub(crate) fn run(test: &Test, with: &[(&str, &str)], limit: Duration, scratch: &Path) -> Result<(End, f64), String> {
    let failed = |error: std::io::Error| format!("failed to run {}: {error}", test.name);
    let _ = fs::remove_dir_all(scratch);
    fs::create_dir_all(scratch).map_err(failed)?;
    let mut command = Command::new(&test.program.path);
    command
        .args(["--exact", &test.filter])
        .current_dir(&test.program.folder)
        .env("CARGO_MANIFEST_DIR", &test.program.folder)
        .env("CARGO_TARGET_DIR", &test.target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("TMPDIR", scratch)
        .env_remove("MUTANT")
        .env_remove("MUTANTS_REACHED")
        .envs(with.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // A separate process group, so that a kill also ends the programs that the test has started.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let began = Instant::now();
    let mut child = command.spawn().map_err(failed)?;
    let group = format!("-{}", child.id());
    let (send, ended) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let status = child.wait();
        let _ = send.send(());
        status
    });
    let in_time = ended.recv_timeout(limit).is_ok();
    // Also after a normal end, because remaining processes would slow down the next test.
    let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
    let status = waiting.join().map_err(|_| format!("failed to wait for {}", test.name))?.map_err(failed)?;
    let end = match (in_time, status.success()) {
        (false, _) => End::TimedOut,
        (true, true) => End::Passed,
        (true, false) => End::Failed,
    };
    Ok((end, began.elapsed().as_secs_f64()))
}

/// Calls `work` for each index below `count`, `jobs` at a time, until the first error.
pub(crate) fn in_parallel(
    jobs: usize,
    count: usize,
    work: impl Fn(usize, usize) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let (next, work) = (&next, &work);
    thread::scope(|scope| {
        let worker = |job: usize| {
            move || loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                work(job, index).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
            }
        };
        let running: Vec<_> = (0..jobs.max(1)).map(|job| scope.spawn(worker(job))).collect();
        running.into_iter().try_for_each(|job| job.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
    })
}

/// Runs each test once without a mutant, and again if it fails. Reuses the results of an earlier run with the same digest.
pub(crate) fn reach(
    tests: &[Test],
    digest: &str,
    kept: &Path,
    scratch: &Path,
    jobs: usize,
) -> Result<BTreeMap<String, Normal>, String> {
    let known = Mutex::new(load(kept, digest));
    let missing: Vec<&Test> = {
        let known = known.lock().map_err(|error| error.to_string())?;
        tests.iter().filter(|test| !known.contains_key(&test.name)).collect()
    };
    println!("  {} tests, {} of them not measured yet", tests.len(), missing.len());
    in_parallel(jobs, missing.len(), |job, index| {
        let Some(test) = missing.get(index) else { return Ok(()) };
        let records = scratch.join(format!("reached-{job}"));
        let mut normal = Normal { passed: false, seconds: 0.0, reached: BTreeSet::new() };
        for _ in 0..2 {
            let _ = fs::remove_file(&records);
            let with = [("MUTANTS_REACHED", records.to_str().unwrap_or_default())];
            let (end, seconds) = run(test, &with, LONGEST, &folder(scratch, job))?;
            let text = fs::read_to_string(&records).unwrap_or_default();
            let reached = text.lines().filter_map(|line| line.parse().ok()).collect();
            normal = Normal { passed: end == End::Passed, seconds, reached };
            if end != End::Failed {
                break;
            }
        }
        if !normal.passed {
            println!("  not used, because it fails without a mutant: {}", test.name);
        }
        let mut known = known.lock().map_err(|error| error.to_string())?;
        known.insert(test.name.clone(), normal);
        if known.len() % 50 == 0 || index + 1 == missing.len() {
            save(kept, digest, &known)?;
        }
        Ok(())
    })?;
    let known = known.into_inner().map_err(|error| error.to_string())?;
    save(kept, digest, &known)?;
    Ok(known)
}

/// The folder for the files of the tests that one worker runs.
pub(crate) fn folder(scratch: &Path, job: usize) -> PathBuf {
    scratch.join(format!("job-{job}"))
}

fn save(path: &Path, digest: &str, known: &BTreeMap<String, Normal>) -> Result<(), String> {
    let tests = known.iter().map(|(name, normal)| {
        json!({"name": name, "passed": normal.passed, "seconds": normal.seconds, "reached": normal.reached})
    });
    let text = json!({"digest": digest, "tests": tests.collect::<Vec<Value>>()}).to_string();
    fs::write(path, text).map_err(|error| format!("failed to write {}: {error}", path.display()))
}

fn load(path: &Path, digest: &str) -> BTreeMap<String, Normal> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let Ok(Value::Object(file)) = serde_json::from_str(&text) else { return BTreeMap::new() };
    if file.get("digest").and_then(Value::as_str) != Some(digest) {
        return BTreeMap::new();
    }
    let tests = file.get("tests").and_then(Value::as_array).into_iter().flatten();
    let normal = |test: &Value| {
        let reached = test["reached"].as_array()?.iter().filter_map(|number| number.as_u64()?.try_into().ok());
        Some(Normal {
            passed: test["passed"].as_bool()?,
            seconds: test["seconds"].as_f64()?,
            reached: reached.collect(),
        })
    };
    tests.filter_map(|test| Some((test["name"].as_str()?.to_owned(), normal(test)?))).collect()
}
