//! Failing cases: stored in a file, run first from then on, and replayed by a command.

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;

use whizbang::testing::{Flow, World};

use crate::bank::*;
use crate::{Step, cluster, perform, steps};

/// A flow with a rule that fails once an account holds more than `most` cents.
fn broken(name: &'static str, most: u64) -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new(name, cluster, steps(), 1..6, perform).at_end(move |world, _| {
        match world.states::<Account>().into_iter().find(|(_, account)| account.cents > most) {
            Some((name, account)) => Err(format!("{name} has {} cents", account.cents)),
            None => Ok(()),
        }
    })
}

fn panic_of(check: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = std::panic::catch_unwind(check).expect_err("it fails");
    panic.downcast_ref::<String>().cloned().expect("a text")
}

#[test]
fn failing_case_is_stored_and_run_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.regressions");
    let told = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..100)));
    assert!(told.contains(&format!("the case was added to {}", file.display())), "{told}");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().last().unwrap();
    assert!(line.starts_with("kept/") && line.ends_with("cents"), "{text}");
    // Stored once, however often it fails, and ignored by a flow with another name.
    let again = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..0)));
    assert!(!again.contains("the case was added"), "{again}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    broken("other", 200).regressions(&file).check(0..0);
    // A fixed case is still run, before the seeds.
    let ran = Rc::new(Cell::new(0));
    let counted = Rc::clone(&ran);
    let right = Flow::new("kept", cluster, steps(), 1..6, perform).at_end(move |_, _| {
        counted.set(counted.get() + 1);
        Ok(())
    });
    right.regressions(&file).check(0..2);
    // A stored case is run twice and compared.
    assert_eq!(ran.get(), 4);
}

#[test]
fn invalid_line_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.regressions");
    std::fs::write(&file, "# a comment\n\nkept/seven/0-0-0 something\n").unwrap();
    let told = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..1)));
    assert!(told.contains("invalid case `kept/seven/0-0-0`"), "{told}");
}

/// Set in the child processes below. The flow fails only there.
const MARK: &str = "WHIZBANG_BROKEN_ON_PURPOSE";

/// A failing flow, run by the name of its test in a child process. Does nothing elsewhere.
#[test]
fn failing_flow_prints_its_report() {
    if std::env::var(MARK).is_ok() {
        broken("replayed", 200).no_regressions().check(0..100);
    }
}

#[test]
fn replay_command_reproduces_the_failure_report() {
    let name = "regressions::failing_flow_prints_its_report";
    let program = std::env::current_exe().unwrap();
    let first = Command::new(&program).args(["--exact", name, "--nocapture"]).env(MARK, "1").output().unwrap();
    assert!(!first.status.success());
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    let line = told.lines().find(|line| line.trim().starts_with("WHIZBANG_SIM=")).expect(&told).trim().to_owned();
    assert!(line.ends_with(&format!(" cargo test --test simulation {name}")), "{line}");
    // Runs the command in a shell. The real Cargo would build first and wait for other builds, so another `cargo` comes first in
    // the path: it accepts the same arguments and runs the program that is already built.
    let folder = tempfile::tempdir().unwrap();
    let cargo = folder.path().join("cargo");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'test --test simulation' ] || exit 77\nshift 3\nexec '{}' --nocapture \"$@\"\n",
        program.display()
    );
    std::fs::write(&cargo, script).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&cargo).status().unwrap().success());
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let pasted = Command::new("sh").args(["-c", &line]).env("PATH", path).env(MARK, "1").output().unwrap();
    assert_eq!(pasted.status.code(), Some(101), "{}", String::from_utf8_lossy(&pasted.stderr));
    let again = String::from_utf8_lossy(&pasted.stderr).into_owned();
    let story = |text: &str| {
        let happened = text.split_once("steps of each actor:").expect(text).1;
        happened.split_once("replay:").expect(text).0.to_owned()
    };
    assert_eq!(story(&again), story(&told));
    assert!(again.contains(&line), "{again}");
}

#[test]
fn case_of_another_flow_is_ignored() {
    let name = "regressions::failing_flow_prints_its_report";
    let mut program = Command::new(std::env::current_exe().unwrap());
    let ran = program.args(["--exact", name]).env(MARK, "1").env("WHIZBANG_SIM", "another/1/0-0-0").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// Counts its seeds. Run in a child process that selects other seeds.
#[test]
fn flow_counting_its_seeds() {
    let ran = Rc::new(Cell::new(0));
    let counted = Rc::clone(&ran);
    let flow = Flow::new("counting", cluster, steps(), 1..2, perform).at_end(move |_, _| {
        counted.set(counted.get() + 1);
        Ok(())
    });
    flow.no_regressions().check(0..3);
    println!("{} seeds", ran.get());
}

#[test]
fn environment_selects_other_seeds() {
    let asked = |seeds: &str| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let arguments = ["--exact", "regressions::flow_counting_its_seeds", "--nocapture"];
        let ran = program.args(arguments).env("WHIZBANG_SIM_SEEDS", seeds).output().unwrap();
        String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap()
    };
    assert!(asked("5").contains("5 seeds"));
    assert!(asked("100..107").contains("7 seeds"));
    for nonsense in ["", "many", "7..7", "9..3", "-1"] {
        let told = asked(nonsense);
        assert!(told.contains(&format!("WHIZBANG_SIM_SEEDS: invalid seeds `{nonsense}`")), "{told}");
    }
}

#[test]
fn flow_name_with_a_space_is_rejected() {
    let told = panic_of(|| drop(broken("two words", 200)));
    assert!(told.contains("`two words` is not a valid flow name"), "{told}");
}
