//! Records of the log of a store.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whizbang::testing::decoders;

fuzz_target!(|input: &[u8]| {
    decoders::log_record(input);
});
