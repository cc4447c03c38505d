//! "Which process am I?" The launcher returns from it, a worker never does.

use std::io::{self, Write};

use crate::sys::image::Image;
use crate::sys::{env, thread};
use crate::wire::marker::Marker;
use crate::wire::names::{EXIT_REFUSED, FUNCTION, SERVER, WORKER};
use crate::wire::service::ServerMarker;
use crate::worker::{self, Origin};
use crate::{launch, start};

/// Says which process this is: a worker runs its function here and never returns; any other process goes on.
///
/// Call it first in main, before anything that a worker should not do too (parsing arguments, opening logs,
/// starting threads). Under `#[tokio::main]` it is too late: a worker would run its function inside of the runtime, so it
/// says what to do and ends; write a plain main that starts the runtime after it. It counts only on the main thread. A test crate, whose main is not its own, uses
/// [`auto_init!`](crate::auto_init) instead.
///
/// ```
/// // the first line of main
/// phalanx::init();
/// // only the launcher comes here
/// ```
pub fn init() {
    if !thread::is_main() {
        return;
    }
    // A worker may start workers too, so this comes before it runs.
    start::allow_spawn();
    if let Some(marker) = std::env::var_os(SERVER) {
        env::remove(SERVER);
        match marker.to_string_lossy().parse::<ServerMarker>() {
            Ok(marker) => start::server::run(&marker),
            Err(error) => refuse(&error),
        }
    }
    if let Some(marker) = std::env::var_os(FUNCTION) {
        env::remove(FUNCTION);
        leave(launch::run_function(&marker.to_string_lossy()));
    }
    if let Some(marker) = std::env::var_os(WORKER) {
        env::remove(WORKER);
        match marker.to_string_lossy().parse::<Marker>() {
            Ok(marker) => worker::run(&marker, &Origin::Exec),
            Err(error) => refuse(&error),
        }
    }
}

fn refuse(error: &str) -> ! {
    let _ = writeln!(io::stderr(), "phalanx: cannot begin as a worker: {error}");
    leave(EXIT_REFUSED)
}

#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "a worker never returns from init, and one without a marker has no other way to refuse"
)]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}

/// What [`auto_init!`](crate::auto_init) calls before main, with the address of its own hook. A hook in a shared
/// object does nothing: taking the process over from within dlopen would be wrong.
#[doc(hidden)]
pub fn init_before_main(hook: extern "C" fn()) {
    let ours = Image::main().is_ok_and(|image| image.offset_of(hook as usize).is_some());
    if ours {
        init();
    }
}

/// Calls [`init`](crate::init) before main, for crates whose main is not theirs: tests and doctests.
///
/// Write it once at the top of each file in `tests/`, and in `lib.rs` under `#[cfg(test)]`.
///
/// ```
/// phalanx::auto_init!();
///
/// fn square(rank: usize, _: ()) -> anyhow::Result<usize> {
///     Ok(rank * rank)
/// }
///
/// # fn main() {
/// assert_eq!(phalanx::spawn(square, (), 3).unwrap(), [0, 1, 4]);
/// # }
/// ```
#[macro_export]
macro_rules! auto_init {
    () => {
        const _: () = {
            extern "C" fn phalanx_init_before_main() {
                $crate::init_before_main(phalanx_init_before_main);
            }
            #[used]
            #[unsafe(link_section = ".init_array")]
            static PHALANX_INIT: extern "C" fn() = phalanx_init_before_main;
        };
    };
}
