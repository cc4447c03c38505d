//! A program whose main forgets `init`, and one that calls it too late: clear errors on both sides, no fork bomb.
//!
//! Without a harness, since the program is what is tested. Its own first worker runs this main again.

#![expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the exit codes of the two sides are what is tested"
)]

#[path = "common/harness.rs"]
mod harness;

use std::process::ExitCode;

use phalanx::launch::{Ending, Launch, LaunchError};
use phalanx::{Cause, Error, Options, StartMethod, spawn, start_processes};

const SKIPPED: i32 = 42;
/// In the environment of the workers.
const WORKER: &str = "PHALANX_TEST_WORKER";

fn work(rank: usize, _: ()) -> anyhow::Result<usize> {
    Ok(rank)
}

fn launched(_: usize, (): ()) -> anyhow::Result<()> {
    Ok(())
}

fn main() -> ExitCode {
    if let Ok(code) = std::env::var(WORKER) {
        worker(code.parse().unwrap())
    }
    harness::run(&harness::tests![ended_if_it_hangs: program_that_forgot_init_is_told_so])
}

fn ended_if_it_hangs(test: fn()) {
    nix::unistd::alarm::set(120);
    test();
    nix::unistd::alarm::cancel();
}

/// And mends it just for itself, not for its workers.
fn program_that_forgot_init_is_told_so() {
    let error = spawn(work, (), 2).unwrap_err();
    assert!(matches!(error, Error::InitNotCalled { pid } if pid == std::process::id()), "{error}");
    let on_another_thread = std::thread::spawn(|| {
        phalanx::init();
        spawn(work, (), 2)
    });
    let error = on_another_thread.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::InitNotCalled { .. }), "init counts on the main thread only: {error}");

    let refused = Launch::function(launched, ()).unwrap_err();
    let LaunchError::Function { error, .. } = &refused else { panic!("{refused}") };
    assert!(matches!(**error, Error::InitNotCalled { .. }), "{refused}");

    phalanx::init();
    // Whatever the code, the function has not run.
    for code in [SKIPPED, 0] {
        let launch = Launch::function(launched, ()).unwrap().env(WORKER, code.to_string());
        let summary = launch.run().unwrap();
        let root = summary.attempts[0].root_cause().unwrap();
        assert_eq!((root.ending, root.cause), (Ending::Exited { code }, Some(Cause::NeverReachedInit)));
        assert_eq!(summary.exit_code(), code.max(1), "{summary}");
    }
    let context = start_processes(work, (), Options::new(2).env(WORKER, SKIPPED.to_string())).unwrap();
    let Error::ProcessExited(exception) = context.join().unwrap_err() else { panic!("expected an exit") };
    assert_eq!((exception.exit_code(), exception.cause()), (Some(SKIPPED), Some(Cause::NeverReachedInit)));
    let text = exception.to_string();
    assert!(text.contains("never reached phalanx::init()"), "{text}");
}

/// The same main in the worker came here without `init`, and must start nobody, by no method.
fn worker(code: i32) -> ! {
    for method in [StartMethod::Spawn, StartMethod::Fork] {
        let error = start_processes(work, (), Options::new(1).start_method(method)).unwrap_err();
        assert!(matches!(error, Error::InitSkipped { pid } if pid == std::process::id()), "{error}");
        assert!(error.to_string().contains("was started as a phalanx worker"), "{error}");
    }
    let refused = Launch::function(launched, ()).unwrap_err();
    assert!(refused.to_string().contains("was started as a phalanx worker"), "{refused}");
    std::process::exit(code);
}
