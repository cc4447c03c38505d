//! Whatever bytes lie in the ring of a queue, to read them as a message is an error at worst.
//! `cargo +nightly fuzz run message` (cargo-fuzz).

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| phalanx::fuzz_message(data));
