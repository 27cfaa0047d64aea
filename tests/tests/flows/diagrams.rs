//! Compares docs/diagrams.md with the diagrams of today's runs, and requires an explanation for everything that is never reached.

use shop::orders::Fulfilment;
use whizbang::testing::Coverage;

use crate::bank::Transfer;
use crate::shop_flow::fulfilment;
use crate::transfer_flow::transfers;

/// The lines that no seed reaches, with the reason. Any other line that is never reached is an error, and so is a reached one here.
const EXPLAINED: &[(&str, &str)] = &[
    ("fulfilment: OrderPlaced while compensating", ONCE),
    ("fulfilment: OrderPlaced after its end", ONCE),
    ("fulfilment: reply to inventory.Reserve after its end", KNOWN),
    ("fulfilment: rejection of inventory.Reserve after its end", KNOWN),
    ("fulfilment: reply to shipping.Ship while compensating", SHIPPED),
    ("fulfilment: reply to shipping.Ship after its end", SHIPPED),
    ("fulfilment: rejection of shipping.Ship while compensating", SHIPPED),
    ("fulfilment: rejection of shipping.Ship after its end", SHIPPED),
    ("fulfilment: timer PaymentOverdue while compensating", CLEARED),
    ("transfer: StartTransfer while compensating", ONCE),
    ("transfer: StartTransfer after its end", ONCE),
    ("transfer: FailTransfer", "it is sent after all steps are undone, so it arrives after the end"),
    ("transfer: FailTransfer while compensating", "it is sent after all steps are undone, so it arrives after the end"),
    ("transfer: Outcome", UNASKED),
    ("transfer: Outcome while compensating", UNASKED),
    ("transfer: Outcome after its end", UNASKED),
    (
        "transfer: bank.Withdrawn after its end",
        "the event must be lost and the reply late until the transfer is given up: some of 3,000 seeds reach it",
    ),
    ("transfer: reply to bank.Deposit after its end", KNOWN),
    (
        "transfer: rejection of bank.Deposit while compensating",
        "the paying accounts are never closed, so they accept a refund",
    ),
    ("transfer: rejection of bank.Deposit after its end", KNOWN),
    ("transfer: rejection of bank.Withdraw after its end", KNOWN),
    ("transfer: timer Overdue while compensating", CLEARED),
];

const ONCE: &str = "the flow starts each one once";
const KNOWN: &str = "it does not end before the outcome of each step is known";
const SHIPPED: &str = "after `Ship` is sent, only its reply ends the saga or starts compensation";
const CLEARED: &str = "compensation clears all timers";
const UNASKED: &str = "the flow never sends `Outcome`";

/// The lines that are never reached and not explained, and those that are explained and reached.
fn wrong(coverage: &Coverage, saga: &str) -> Vec<String> {
    let never: Vec<_> =
        coverage.unreached().into_iter().filter(|line| line.starts_with(&format!("{saga}: "))).collect();
    let is_explained = |line: &String| EXPLAINED.iter().any(|(of, _)| of == line);
    let unexplained = never
        .iter()
        .filter(|line| !is_explained(line))
        .map(|line| format!("no seed reaches, and nothing explains: {line}"));
    let mine = EXPLAINED.iter().filter(|(line, _)| line.starts_with(&format!("{saga}: ")));
    let reached = mine
        .filter(|(line, _)| !never.iter().any(|of| of == line))
        .map(|(line, _)| format!("is explained and reached: {line}"));
    unexplained.chain(reached).collect()
}

/// The explained lines of one saga, as the page lists them.
fn explained(saga: &str) -> String {
    let reasons = EXPLAINED.iter().filter_map(|(line, why)| Some((line.strip_prefix(saga)?.strip_prefix(": ")?, why)));
    let lines = reasons.map(|(line, why)| format!("- {line}: {why}\n"));
    format!("Never reached, with the reason:\n\n{}", lines.collect::<String>())
}

/// The page with the current diagrams.
fn page() -> String {
    let (shop, bank) = (fulfilment().check(0..200), transfers().check(0..200));
    let wrong: Vec<_> = wrong(&shop, "fulfilment").into_iter().chain(wrong(&bank, "transfer")).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let picture = |text: &str| format!("```mermaid\n{}```\n", text);
    format!(
        "# Diagrams\n\nThe diagrams show the messages listed in the derives, and the transitions seen in 200 seeds of each flow. A \
         state is named after\nthe last recorded event. A test compares this page with the current diagrams; to update it, run\n\
         `TESTS_DRAW=1 cargo test -p whizbang-tests --test flows diagrams`. The test explains everything that is never\nreached.\n\n\
         ## The shop: messages between actors\n\n{}\n## The shop's fulfilment\n\n{}\n{}\n## The bank's transfer\n\n{}\n{}",
        picture(&shop.mermaid()),
        picture(&shop.of::<Fulfilment>().mermaid()),
        explained("fulfilment"),
        picture(&bank.of::<Transfer>().mermaid()),
        explained("transfer"),
    )
}

#[test]
fn diagrams_in_documentation_are_up_to_date() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/diagrams.md");
    let today = page();
    if std::env::var("TESTS_DRAW").is_ok() {
        std::fs::write(file, &today).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    let differs = kept.lines().zip(today.lines()).find(|(kept, today)| kept != today);
    assert!(
        kept == today,
        "docs/diagrams.md is out of date; its first paragraph has the command to update it. It differs in {differs:?}"
    );
}
