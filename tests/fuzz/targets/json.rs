//! JSON from a server: claims, which any client may have written, and responses of JetStream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whizbang::testing::decoders;

fuzz_target!(|input: &[u8]| {
    decoders::claim(input);
    decoders::stream_response(input);
});
