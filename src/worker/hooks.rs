//! What a forked worker does before its function: a fresh seed, the user's hooks.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::sys::dir;

type Hook = Box<dyn Fn(u64) + Send>;

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());
/// The seed, and the pid of the process that drew it: a fork has its parent's seed in memory, and must draw another one.
static SEED: Mutex<Option<(u32, u64)>> = Mutex::new(None);

/// Registers a function that every worker runs which is forked from this process, before its own function: with
/// [`StartMethod::Fork`](crate::StartMethod) from the launcher, with `ForkServer` from the server, where
/// [`ForkServer::preload`](crate::ForkServer::preload) is the place to register it. It gets a fresh random number, the
/// worker's [`seed`], since a fork copies the state of random number generators: all workers would draw the same.
///
/// Hooks run in the order in which they were registered. One that panics fails its worker.
///
/// ```
/// phalanx::after_fork(|seed| {
///     // reseed what draws random numbers, reconnect what was connected
///     let _ = seed;
/// });
/// ```
pub fn after_fork(hook: impl Fn(u64) + Send + 'static) {
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(hook));
}

/// A random number of 64 bits that is this process's own: each call in a process returns the same one, and every worker has another,
/// by whichever start method it was started. A worker that is started again has another one too.
///
/// ```
/// assert_eq!(phalanx::seed(), phalanx::seed());
/// ```
#[must_use]
pub fn seed() -> u64 {
    let own = std::process::id();
    let mut known = SEED.lock().unwrap_or_else(PoisonError::into_inner);
    match *known {
        Some((process, seed)) if process == own => seed,
        // There is none yet, or it is the parent's, of which this process is a fork.
        _ => known.insert((own, draw())).1,
    }
}

/// Draws from the kernel (getrandom(2)); from clock and pid where that call is refused, as by a seccomp filter.
fn draw() -> u64 {
    dir::random().unwrap_or_else(|_| {
        mix(crate::sys::clock::Moment::now().as_nanos() ^ u64::from(std::process::id()).rotate_left(40))
    })
}

/// The last step of splitmix64, by which seeds that differ in one bit differ in half of their bits.
fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs the hooks, in a worker that was forked.
///
/// # Errors
/// The message of the panic, if a hook panicked. The hooks after it do not run.
pub(super) fn run() -> Result<(), String> {
    // Called without the lock, since a hook may register another hook.
    let hooks = std::mem::take(&mut *HOOKS.lock().unwrap_or_else(PoisonError::into_inner));
    let seed = seed();
    let done = hooks.iter().try_for_each(|hook| {
        panic::catch_unwind(AssertUnwindSafe(|| hook(seed)))
            .map_err(|payload| format!("an after_fork hook panicked: {}", super::report::text_of(&*payload)))
    });
    // Put back: workers that this worker forks run them too.
    HOOKS.lock().unwrap_or_else(PoisonError::into_inner).splice(0..0, hooks);
    done
}
