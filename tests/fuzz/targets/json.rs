//! JSON from outside: claims, which any client may have written, responses of JetStream, requests for events, and shapes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whizbang::testing::decoders;

fuzz_target!(|input: &[u8]| {
    decoders::claim(input);
    decoders::stream_response(input);
    decoders::json_request(input);
    decoders::shape(input);
});
