//! What a server answers in JSON, and claims, which others may have written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whizbang::testing::decoders;

fuzz_target!(|input: &[u8]| {
    decoders::claim(input);
    decoders::stream_response(input);
});
