//! Ends the unit tests when one of them hangs.

use nix::unistd::alarm;

/// More than all unit tests take together, the models of loom among them.
const SECONDS: u32 = 900;

/// Runs before main: the tests' harness has no place for it.
extern "C" fn arm() {
    let slowness =
        std::env::var("PHALANX_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    alarm::set(SECONDS * slowness);
}

#[used]
#[unsafe(link_section = ".init_array")]
static ARM: extern "C" fn() = arm;
