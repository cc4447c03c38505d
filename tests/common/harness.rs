//! The harness of tests that need a process with a single thread: they run on the main thread, one after another. Test
//! runners can list and choose them as they do others.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

pub(crate) type Test = (&'static str, fn());

/// Tests with their names, each run by a function such as `watched`.
macro_rules! tests {
    ($run:path: $($test:ident),* $(,)?) => {
        [$((stringify!($test), (|| $run($test)) as fn())),*]
    };
}
pub(crate) use tests;

pub(crate) fn run(tests: &[Test]) -> ExitCode {
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trial = |&(name, test): &Test| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit_code()
}
