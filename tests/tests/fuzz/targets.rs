//! The targets of `tests/fuzz`, compiled without libFuzzer, which needs a nightly compiler and a compiler of C++.
//!
//! Each target gets some inputs: one that no longer compiles, or that panics at once, fails here.

#[expect(unused_attributes, reason = "only a crate may have no `main`")]
#[path = "../../fuzz/targets/json.rs"]
mod json;
#[expect(unused_attributes, reason = "only a crate may have no `main`")]
#[path = "../../fuzz/targets/message.rs"]
mod message;
#[expect(unused_attributes, reason = "only a crate may have no `main`")]
#[path = "../../fuzz/targets/record.rs"]
mod record;
#[expect(unused_attributes, reason = "only a crate may have no `main`")]
#[path = "../../fuzz/targets/subject.rs"]
mod subject;
#[expect(unused_attributes, reason = "only a crate may have no `main`")]
#[path = "../../fuzz/targets/wire.rs"]
mod wire;

/// Defines the function that libFuzzer would call.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:block) => {
        pub(super) fn run($input: &[u8]) {
            $body
        }
    };
}

/// A target, and an input that its decoder accepts.
type Target = (fn(&[u8]), &'static [u8]);

const TARGETS: [Target; 5] = [
    (json::run, br#"{"stream":"whizbang_events_bank","seq":7}"#),
    (
        message::run,
        br#"1{"number":1,"delta":-1,"paid":true,"sign":"a","city":null,"lines":[],"notes":{},"state":"Open"}"#,
    ),
    (record::run, b""),
    (subject::run, b"wb.evt.bank.3.Deposited"),
    (wire::run, b"0ce-id: 1\n\n{}"),
];

#[test]
fn fuzz_targets_compile_and_accept_any_bytes() {
    for (target, input) in TARGETS {
        target(input);
        for end in 0..=u8::MAX {
            target(&[end]);
            target(&[input, &[end]].concat());
            target(&input[..input.len().min(usize::from(end))]);
        }
    }
}
