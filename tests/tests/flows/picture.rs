//! The pictures in docs/pictures.md are what the runs draw today.

use std::collections::BTreeSet;

use shop::orders::Fulfilment;

use crate::bank::Transfer;
use crate::shop_flow::fulfilment;
use crate::transfer_flow::transfers;

/// The page, drawn anew.
fn page() -> String {
    let (shop, bank) = (fulfilment().check(0..200), transfers().check(0..200));
    let picture = |text: &str| format!("```mermaid\n{}```\n", text);
    format!(
        "# Pictures\n\nDrawn from what the derives list and from what 200 seeds of each flow have seen. A state is named after \
         the last event\nrecorded. A test compares this page with what is drawn today; to draw it anew:\n`TESTS_DRAW=1 cargo \
         test -p whizbang-tests --test flows pictures`.\n\n## The shop: who sends what to whom\n\n{}\n## The shop's \
         fulfilment\n\n{}\n## The bank's transfer\n\n{}",
        picture(&shop.mermaid()),
        picture(&shop.of::<Fulfilment>().mermaid()),
        picture(&bank.of::<Transfer>().mermaid()),
    )
}

/// The lines that say what was reached; what was never reached changes with every new path that a seed finds.
fn drawn(page: &str) -> BTreeSet<&str> {
    page.lines().filter(|line| !line.trim_start().starts_with("never")).collect()
}

#[test]
fn the_pictures_in_the_documentation_are_what_is_drawn() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pictures.md");
    let today = page();
    if std::env::var("TESTS_DRAW").is_ok() {
        std::fs::write(file, &today).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap();
    let (today, kept) = (drawn(&today), drawn(&kept));
    let changed: Vec<_> = today.symmetric_difference(&kept).collect();
    // A way that few seeds take may come or go with any change of timing.
    assert!(changed.len() <= 4, "docs/pictures.md is not what is drawn; it says how it is drawn anew. {changed:#?}");
}
