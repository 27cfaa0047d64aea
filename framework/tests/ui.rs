//! What the derives accept, and what they say about every mistake.

#[test]
fn a_correct_program_compiles_and_runs() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/pass/*.rs");
    cases.compile_fail("tests/ui/fail/*.rs");
}
