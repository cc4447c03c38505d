//! Every environment variable, exit code and version that two processes agree on.

/// Makes a process a worker: a [`Marker`](super::marker::Marker) as text. Removed before user code runs.
pub(crate) const WORKER: &str = "__PHALANX_WORKER";

/// Makes a process a fork server: a [`ServerMarker`](super::service::ServerMarker) as text.
pub(crate) const SERVER: &str = "__PHALANX_SERVER";

/// The version of marker, job and report slot: it counts up when the bytes of one of them change. A worker refuses another one.
pub(crate) const PROTOCOL: u32 = 2;

/// Exit code of a worker whose function returned `Err` or panicked.
pub(crate) const EXIT_RAISED: i32 = 1;

/// Exit code of a worker that could not be set up.
pub(crate) const EXIT_REFUSED: i32 = 70;
