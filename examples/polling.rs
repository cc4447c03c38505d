//! A join loop with a deadline: shows which workers still run, ends those that are left when the time is up, tells how all ended.
//!
//! ```sh
//! cargo run --example polling
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its results")]

use std::time::{Duration, Instant};

use phalanx::{Options, start_processes_with};

/// How far each rank counts. The last would take for ever.
const LIMITS: [u64; 4] = [50_000, 300_000, 4_000_000, u64::MAX];
const POLL: Duration = Duration::from_millis(250);
const TIME: Duration = Duration::from_secs(2);

fn main() -> anyhow::Result<()> {
    phalanx::init();
    let start = Instant::now();
    let limit_of = |rank: usize| LIMITS[rank];
    let mut context = start_processes_with(count_primes, limit_of, Options::new(LIMITS.len()))?;

    let joined = loop {
        match context.join_timeout(POLL) {
            Ok(false) => {}
            joined => break joined,
        }
        let outcomes = context.outcomes()?;
        let running = outcomes.iter().filter(|outcome| outcome.status().is_alive());
        let ranks: Vec<usize> = running.map(|outcome| outcome.rank()).collect();
        println!("{:.2} s: ranks {ranks:?} still run", start.elapsed().as_secs_f64());
        if start.elapsed() >= TIME {
            println!("time is up");
            context.terminate()?;
        }
    };

    // A worker that was terminated has failed, so the join says that.
    if let Err(error) = joined {
        println!("\n{error}\n");
    }
    for outcome in context.outcomes()? {
        println!("{outcome}");
        if let Some(primes) = context.result(outcome.rank())? {
            println!("  {primes} primes below {}", LIMITS[outcome.rank()]);
        }
    }
    Ok(())
}

fn count_primes(_rank: usize, limit: u64) -> anyhow::Result<usize> {
    let is_prime = |n: &u64| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    Ok((2..limit).filter(is_prime).count())
}
