//! Cases that did not hold are kept in a file, run first from then on, and played again by one line.

use std::cell::Cell;
use std::process::Command;
use std::rc::Rc;

use whizbang::testing::{Flow, World};

use crate::bank::*;
use crate::{Step, cluster, perform, steps};

/// A flow with a rule that breaks as soon as somebody has much money.
fn broken(name: &'static str, most: u64) -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new(name, cluster, steps(), 1..6, perform).at_end(move |world, _| {
        match world.states::<Account>().into_iter().find(|(_, account)| account.cents > most) {
            Some((name, account)) => Err(format!("{name} has {} cents", account.cents)),
            None => Ok(()),
        }
    })
}

fn panic_of(check: impl FnOnce() + std::panic::UnwindSafe) -> String {
    let panic = std::panic::catch_unwind(check).expect_err("it does not hold");
    panic.downcast_ref::<String>().cloned().expect("a text")
}

#[test]
fn a_case_that_did_not_hold_is_kept_and_run_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.regressions");
    let told = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..100)));
    assert!(told.contains(&format!("the case is kept in {}", file.display())), "{told}");
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().last().unwrap();
    assert!(line.starts_with("kept/") && line.ends_with("cents"), "{text}");
    // Kept once, however often it fails, and the flow of another name does not mind.
    let again = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..0)));
    assert!(!again.contains("the case is kept"), "{again}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    broken("other", 200).regressions(&file).check(0..0);
    // Once it holds, it is run for ever, before the seeds.
    let ran = Rc::new(Cell::new(0));
    let counted = Rc::clone(&ran);
    let right = Flow::new("kept", cluster, steps(), 1..6, perform).at_end(move |_, _| {
        counted.set(counted.get() + 1);
        Ok(())
    });
    right.regressions(&file).check(0..2);
    assert_eq!(ran.get(), 3);
}

#[test]
fn a_line_that_is_no_case_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.regressions");
    std::fs::write(&file, "# a remark\n\nkept/seven/0-0-0 something\n").unwrap();
    let told = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..1)));
    assert!(told.contains("`kept/seven/0-0-0` is no case"), "{told}");
}

#[test]
fn the_line_at_the_end_plays_the_case_again() {
    const MARK: &str = "WHIZBANG_BROKEN_ON_PURPOSE";
    let flow = broken("replayed", 200).no_regressions();
    if std::env::var(MARK).is_ok() {
        flow.check(0..0);
        return;
    }
    let told = panic_of(|| drop(broken("replayed", 200).no_regressions().check(0..100)));
    let line = told.lines().last().unwrap().trim();
    let name = "the_line_at_the_end_plays_the_case_again";
    let (variable, call) = line.split_once(" cargo test ").expect(line);
    let (variable, case) = variable.split_once('=').expect(line);
    assert_eq!(call, format!("--test simulation regressions::{name}"), "{line}");
    let play = |case: &str, name: &str| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let ran = program.args(["--exact", name, "--nocapture"]).env(MARK, "1").env(variable, case).output().unwrap();
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let (held, again) = play(case, &format!("regressions::{name}"));
    assert!(!held);
    let story = |text: &str| text.split_once("what happened:").map(|(_, happened)| happened.trim().to_owned());
    let first = story(&told).unwrap();
    assert!(story(&again).unwrap().starts_with(&first), "another run:\n{again}\ninstead of:\n{told}");
    // Without its mark nothing is checked: the case is another flow's.
    assert!(play("another/1/0-0-0", &format!("regressions::{name}")).0);
}

#[test]
fn a_name_that_a_shell_would_not_take_as_one_word_is_refused() {
    let told = panic_of(|| drop(broken("two words", 200)));
    assert!(told.contains("`two words` cannot name a flow"), "{told}");
}
