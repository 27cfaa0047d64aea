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
    // A kept case is run twice and compared.
    assert_eq!(ran.get(), 4);
}

#[test]
fn a_line_that_is_no_case_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.regressions");
    std::fs::write(&file, "# a remark\n\nkept/seven/0-0-0 something\n").unwrap();
    let told = panic_of(|| drop(broken("kept", 200).regressions(&file).check(0..1)));
    assert!(told.contains("`kept/seven/0-0-0` is no case"), "{told}");
}

/// Set in the child processes below: only there the flow is broken.
const MARK: &str = "WHIZBANG_BROKEN_ON_PURPOSE";

/// A flow that does not hold, called as people call it: by its test's name, in a process of its own. Elsewhere it does nothing.
#[test]
fn a_flow_that_is_broken_on_purpose() {
    if std::env::var(MARK).is_ok() {
        broken("replayed", 200).no_regressions().check(0..100);
    }
}

#[test]
fn the_line_at_the_end_pasted_into_a_shell_tells_the_same_story() {
    let name = "regressions::a_flow_that_is_broken_on_purpose";
    let program = std::env::current_exe().unwrap();
    let first = Command::new(&program).args(["--exact", name, "--nocapture"]).env(MARK, "1").output().unwrap();
    assert!(!first.status.success());
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    let line = told.lines().find(|line| line.trim().starts_with("WHIZBANG_SIM=")).expect(&told).trim().to_owned();
    assert!(line.ends_with(&format!(" cargo test --test simulation {name}")), "{line}");
    // The line as it stands, in a shell. Cargo would build the test first and wait for whoever builds; so another `cargo` stands
    // before it in the path: it takes the same words and runs the program that is built already.
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
        let happened = text.split_once("what each actor did:").expect(text).1;
        happened.split_once("play it again:").expect(text).0.to_owned()
    };
    assert_eq!(story(&again), story(&told));
    assert!(again.contains(&line), "{again}");
}

#[test]
fn the_case_of_another_flow_is_none_of_this_one() {
    let name = "regressions::a_flow_that_is_broken_on_purpose";
    let mut program = Command::new(std::env::current_exe().unwrap());
    let ran = program.args(["--exact", name]).env(MARK, "1").env("WHIZBANG_SIM", "another/1/0-0-0").output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// The seeds of the flow that says so, as its steps are counted; in a process that asks for other seeds than the code.
#[test]
fn a_flow_that_counts_its_seeds() {
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
fn other_seeds_than_those_in_the_code_can_be_asked_for() {
    let asked = |seeds: &str| {
        let mut program = Command::new(std::env::current_exe().unwrap());
        let arguments = ["--exact", "regressions::a_flow_that_counts_its_seeds", "--nocapture"];
        let ran = program.args(arguments).env("WHIZBANG_SIM_SEEDS", seeds).output().unwrap();
        String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap()
    };
    assert!(asked("5").contains("5 seeds"));
    assert!(asked("100..107").contains("7 seeds"));
    for nonsense in ["", "many", "7..7", "9..3", "-1"] {
        let told = asked(nonsense);
        assert!(told.contains(&format!("WHIZBANG_SIM_SEEDS: `{nonsense}` are no seeds")), "{told}");
    }
}

#[test]
fn a_name_that_a_shell_would_not_take_as_one_word_is_refused() {
    let told = panic_of(|| drop(broken("two words", 200)));
    assert!(told.contains("`two words` cannot name a flow"), "{told}");
}
