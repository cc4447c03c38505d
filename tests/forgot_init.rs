//! A program whose main forgets `init`, and one that calls it too late: clear errors on both sides, no fork bomb.
//!
//! Without a harness, since the program is what is tested. Its own first worker runs this main again.

#![expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the exit codes of the two sides are what is tested"
)]
#![expect(clippy::print_stdout, reason = "it prints what a test harness would")]

use phalanx::{Cause, Error, Options, StartMethod, spawn, start_processes};

const SKIPPED: i32 = 42;

fn work(rank: usize, _: ()) -> anyhow::Result<usize> {
    Ok(rank)
}

fn main() {
    nix::unistd::alarm::set(60);
    match spawn(work, (), 2).unwrap_err() {
        Error::InitNotCalled { pid } => launcher(pid),
        Error::InitSkipped { pid } => worker(pid),
        other => panic!("{other}"),
    }
    println!("\ntest result: ok. 1 passed; 0 failed");
}

/// Forgot it altogether, was told so, and mends that just for itself.
fn launcher(pid: u32) {
    assert_eq!(pid, std::process::id());
    let on_another_thread = std::thread::spawn(|| {
        phalanx::init();
        spawn(work, (), 2)
    });
    let error = on_another_thread.join().unwrap().unwrap_err();
    assert!(matches!(error, Error::InitNotCalled { .. }), "init counts on the main thread only: {error}");

    phalanx::init();
    let Error::ProcessExited(exception) = spawn(work, (), 2).unwrap_err() else { panic!("expected an exit") };
    assert_eq!((exception.exit_code(), exception.cause()), (Some(SKIPPED), Some(Cause::NeverReachedInit)));
    let text = exception.to_string();
    assert!(text.contains("never reached phalanx::init()"), "{text}");
}

/// The same main in the worker came here without `init`, and must start nobody, by no method.
fn worker(pid: u32) {
    assert_eq!(pid, std::process::id());
    let fork = start_processes(work, (), Options::new(1).start_method(StartMethod::Fork)).unwrap_err();
    assert!(matches!(fork, Error::InitSkipped { .. }), "{fork}");
    assert!(fork.to_string().contains("was started as a phalanx worker"), "{fork}");
    std::process::exit(SKIPPED);
}
