//! A job that goes on where it has failed: what the workers have done lies in a tensor, which outlives an attempt.
//!
//! ```sh
//! cargo run --example restart
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use anyhow::{Context, Result, ensure};
use phalanx::Tensor;
use phalanx::launch::{Launch, Nproc};

const WORKERS: usize = 3;
const NUMBERS: usize = 300_000;
/// With this number rank 0 fails, the first time.
const UNLUCKY: usize = 200_002;

fn main() -> Result<()> {
    // The workers run this program too: here they turn off, and never come back.
    phalanx::init();
    let lengths = Tensor::<u32>::zeros(&[NUMBERS])?;
    let launch = Launch::function(measure, lengths.clone())?.nproc(Nproc::Count(WORKERS));
    // This process is the job's: Ctrl-C ends the workers first, and nothing is left where this process is killed.
    let summary = launch.max_restarts(1).handle_signals(true).run()?;
    ensure!(summary.succeeded(), "{summary}");

    let root = summary.attempts[0].root_cause().context("the first attempt fails")?;
    let error = root.error.as_ref().context("the function has returned an error")?;
    println!("\nrank {} had failed: {}", root.rank, error.message);
    println!("{}", error.traceback.as_deref().unwrap_or_default());

    let longest = lengths.to_vec().into_iter().enumerate().max_by_key(|&(_, length)| length);
    let (start, length) = longest.context("there are numbers")?;
    println!("\nthe longest path to 1 begins at {start}, and has {length} numbers");
    ensure!((start, length) == (230_631, 443));
    Ok(())
}

/// Measures the Collatz paths of every third number, from the first that no attempt has measured.
fn measure(rank: usize, lengths: Tensor<u32>) -> Result<()> {
    let is_first = std::env::var("TORCHELASTIC_RESTART_COUNT")? == "0";
    let own = || (rank + 1..NUMBERS).step_by(WORKERS);
    let todo = own().filter(|&number| lengths.get(number).is_ok_and(|length| length == 0));
    println!("{} of {} numbers are left", todo.clone().count(), own().count());
    for number in todo {
        ensure!(!is_first || number != UNLUCKY, "out of luck with {number}");
        lengths.set(number, path_length(number))?;
    }
    Ok(())
}

/// How many numbers there are on the path, with the first and the last.
fn path_length(start: usize) -> u32 {
    let next = |&number: &usize| match number {
        1 => None,
        even if even.is_multiple_of(2) => Some(even / 2),
        odd => Some(3 * odd + 1),
    };
    std::iter::successors(Some(start), next).count() as u32
}
