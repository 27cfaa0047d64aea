//! The code on the page is the code of these programs.

const PROGRAMS: [&str; 8] = [
    include_str!("aggregator.rs"),
    include_str!("channels.rs"),
    include_str!("claim_check.rs"),
    include_str!("dead_letters.rs"),
    include_str!("resequencer.rs"),
    include_str!("routing.rs"),
    include_str!("routing_slip.rs"),
    include_str!("scatter_gather.rs"),
];

/// The Rust blocks of a page, without line breaks and indentation.
fn blocks(page: &str) -> Vec<String> {
    let blocks = page.split("```rust\n").skip(1);
    blocks.map(|block| dense(block.split("```").next().unwrap_or_default())).collect()
}

fn dense(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_block_of_the_page_is_in_a_program() {
    let programs = PROGRAMS.map(dense);
    let blocks = blocks(include_str!("../../../docs/patterns.md"));
    assert!(blocks.len() >= 15, "{} blocks", blocks.len());
    for block in blocks {
        // `…` stands for omitted text.
        let parts: Vec<_> = block.split('…').map(str::trim).filter(|part| !part.is_empty()).collect();
        let is_here = |program: &String| parts.iter().all(|part| program.contains(part));
        assert!(programs.iter().any(is_here), "not in a program:\n{block}");
    }
}
