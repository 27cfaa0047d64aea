//! Packets of every kind; the first byte selects the decoder of the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use whizbang::testing::decoders;

fuzz_target!(|input: &[u8]| {
    let Some((kind, packet)) = input.split_first() else { return };
    match kind % 5 {
        0 => decoders::envelope(packet),
        1 => decoders::request(packet),
        2 => decoders::response(packet),
        3 => decoders::pack(packet),
        _ => decoders::notification(packet),
    };
});
