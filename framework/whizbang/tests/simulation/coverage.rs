//! Coverage of runs: reached and unreached paths, diagrams and reports.

use whizbang::testing::{Coverage, Sim};

use crate::bank::*;
use crate::{cluster, transfers};

fn one_transfer() -> Coverage {
    let run = cluster(Sim::new(1)).run(async |world| {
        world.send(deposit("ada", 100)).await.unwrap();
        world.send(transfer("good", "ada", "bob", 30)).await.unwrap();
        world.wait_idle().await;
        world.send(transfer("poor", "ada", "bob", 300)).await.unwrap();
    });
    run.expect("nothing goes wrong").coverage
}

#[test]
fn coverage_counts_messages_by_phase() {
    let coverage = one_transfer();
    let transfer = coverage.of::<Transfer>();
    assert_eq!(transfer.command::<StartTransfer>().count(), 2);
    assert_eq!(transfer.event::<Withdrawn>().count(), 1);
    assert_eq!(transfer.rejection::<Withdraw>().while_open().count(), 1);
    assert_eq!((transfer.completed(), transfer.compensated()), (1, 1));
    transfer.timer::<Overdue>().never_reached();
    assert_eq!(coverage.of::<Account>().rejects::<Withdraw>().count(), 1);
}

#[test]
fn coverage_lists_unreached_paths() {
    let coverage = one_transfer();
    let never = coverage.unreached();
    for what in [
        "transfer: timer Overdue",
        "transfer: rejection of bank.Deposit",
        "transfer: bank.Withdrawn after its end",
        "account: Close",
    ] {
        assert!(never.iter().any(|line| line == what), "{what} is not in {never:#?}");
    }
    let panicked = std::panic::catch_unwind(|| coverage.of::<Transfer>().timer::<Overdue>().at_least(1));
    let text = panicked.expect_err("it was not reached").downcast_ref::<String>().cloned().unwrap();
    assert!(text.starts_with("transfer: timer Overdue was reached 0 times, expected at least 1"), "{text}");
}

#[test]
fn two_hundred_seeds_reach_late_paths_of_transfers() {
    let coverage = transfers().check(0..200);
    let transfer = coverage.of::<Transfer>();
    transfer.reply::<Deposit>().at_least(100);
    transfer.rejection::<Withdraw>().at_least(100);
    transfer.rejection::<Deposit>().while_open().at_least(5);
    transfer.reply::<Deposit>().while_compensating().at_least(5);
    assert!(transfer.completed() > 100 && transfer.compensated() > 100, "{transfer}");
    assert!(coverage.wait_times().measured > 100, "{:?}", coverage.wait_times());
    println!("{coverage}\n{}\n{}\n{}", transfer.mermaid(), transfer.dot(), coverage.mermaid());
}

#[test]
fn report_is_written_to_folder_from_environment() {
    let folder = tempfile::tempdir().unwrap();
    let name = "coverage::two_hundred_seeds_reach_late_paths_of_transfers";
    let mut program = std::process::Command::new(std::env::current_exe().unwrap());
    let ran = program.args(["--exact", name]).env("WHIZBANG_SIM_REPORT", folder.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    let page = std::fs::read_to_string(folder.path().join("transfers.md")).unwrap();
    for what in [
        "## Never reached\n\n",
        "stateDiagram-v2\n",
        "flowchart LR\n",
        "200 runs",
        "- killed during a commit: ",
        "rejection of bank.Deposit",
        "- CrashAt Commit: injected ",
        "- longest wait: ",
    ] {
        assert!(page.contains(what), "`{what}` is not in\n{page}");
    }
}
