//! Every environment variable, exit code and version that two processes agree on.

/// Makes a process a worker: a [`Marker`](super::marker::Marker) as text. Removed before user code runs.
pub(crate) const WORKER: &str = "__PHALANX_WORKER";

/// Makes a process a fork server: a [`ServerMarker`](super::service::ServerMarker) as text.
pub(crate) const SERVER: &str = "__PHALANX_SERVER";

/// Makes a process a worker of `launch` that runs a function: the protocol's version and the number of the inherited job. Removed before
/// user code runs.
pub(crate) const FUNCTION: &str = "__PHALANX_FUNCTION";

/// The number of the stop pipe's end that a launched program has inherited; see [`stop_pipe`](super::stop_pipe).
pub(crate) const STOP_FD: &str = "PHALANX_STOP_FD";

/// What tells the stop pipe from another file under its number: device and inode.
pub(crate) const STOP_PIPE: &str = "PHALANX_STOP_PIPE";

/// The version of marker, job and report slot: it counts up when the bytes of one of them change. A worker refuses another one.
pub(crate) const PROTOCOL: u32 = 2;

/// Exit code of a worker whose function returned `Err` or panicked.
pub(crate) const EXIT_RAISED: i32 = 1;

/// Exit code of a launched function that panicked: that of a Rust program.
pub(crate) const EXIT_PANICKED: i32 = 101;

/// Exit code of a worker that could not be set up.
pub(crate) const EXIT_REFUSED: i32 = 70;
