//! Fault points: places of a program at which a fault can be made to happen. This room imports nothing, so that every other may have points.
//!
//! A point is a static record in a section of its own, so that all points of an executable can be listed without having been reached. It has
//! a byte that says whether a plan in force in this process names it: otherwise it is the load of that byte and a branch. A byte each, and not
//! one for all: where a plan is in force the points that it does not name cost no more. A point that is named calls a hook, which knows the
//! plan.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// What is done at a point that a plan names.
static HOOK: OnceLock<fn(&Point) -> Reaction> = OnceLock::new();

/// A place at which a fault can be made to happen: [`points`](crate::fault::points).
///
/// [`fault::point!`](crate::fault::point) makes one.
#[derive(Debug)]
pub struct Point {
    name: &'static str,
    file: &'static str,
    line: u32,
    admits: Admits,
    /// Whether a plan in force names it.
    is_named: AtomicBool,
}

/// Which faults a point admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Admits {
    /// Those that end the process, and delays: where a panic would leave something half done.
    Deaths,
    /// Panics too.
    Panics,
    /// Errors too: the point says what becomes of one.
    Errors,
}

/// What a point does after its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    GoOn,
    Panic,
    /// The point fails with this errno(3).
    Fail(i32),
}

/// The error of a point at which a plan has one: `error@ckpt.write`, or with an errno `error=ENOSPC@ckpt.write`.
///
/// ```
/// use phalanx::fault;
///
/// fn save(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
///     fault::point!("ckpt.write", |injected| return Err(injected.into()));
///     std::fs::write(path, bytes)
/// }
/// # let path = tempfile::NamedTempFile::new()?;
/// # save(path.path(), b"weights")?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    point: &'static str,
    errno: i32,
}

impl Point {
    #[doc(hidden)]
    #[must_use]
    pub const fn new(name: &'static str, file: &'static str, line: u32, admits: Admits) -> Self {
        Self { name, file, line, admits, is_named: AtomicBool::new(false) }
    }

    /// Its name, by which plans refer to it. Several points may have the same one.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where it is: the path of the source file, as the compiler knows it, and the line, from 1.
    #[must_use]
    pub fn location(&self) -> (&'static str, u32) {
        (self.file, self.line)
    }

    /// Which faults it admits.
    #[must_use]
    pub fn admits(&self) -> Admits {
        self.admits
    }

    /// Whether a plan in force in this process names it.
    #[doc(hidden)]
    #[inline(always)]
    #[must_use]
    pub fn is_named(&self) -> bool {
        // Relaxed: a thread that finds it later does so at its next point. The plan is published by what the hook reads.
        self.is_named.load(Relaxed)
    }

    /// Does what the plan says; `Some`: the point is to fail.
    ///
    /// # Panics
    /// When the plan has a panic here. The place of the panic is the point.
    #[doc(hidden)]
    #[cold]
    #[inline(never)]
    #[track_caller]
    pub fn reach(&'static self) -> Option<Injected> {
        match HOOK.get().map_or(Reaction::GoOn, |hook| hook(self)) {
            Reaction::GoOn => None,
            Reaction::Panic => panic!("fault injected at {}", self.name),
            Reaction::Fail(errno) => Some(Injected { point: self.name, errno }),
        }
    }
}

impl Injected {
    /// The name of the point.
    #[must_use]
    pub fn point(&self) -> &'static str {
        self.point
    }

    /// The number of the error, as in errno(3).
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault injected at {}: {}", self.point, io::Error::from_raw_os_error(self.errno))
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for io::Error {
    /// Of the kind that the system's error would have; [`raw_os_error`](io::Error::raw_os_error) is `None`, and the text says that it was
    /// injected.
    fn from(injected: Injected) -> Self {
        Self::new(Self::from_raw_os_error(injected.errno).kind(), injected)
    }
}

/// Has the points that are named call a hook from now on, and the others do nothing. A process has one hook in all its life.
pub(crate) fn arm(hook: fn(&Point) -> Reaction, is_named: impl Fn(&Point) -> bool) {
    HOOK.get_or_init(|| hook);
    all().iter().for_each(|point| point.is_named.store(is_named(point), Relaxed));
}

/// Has no point do anything.
pub(crate) fn disarm() {
    all().iter().for_each(|point| point.is_named.store(false, Relaxed));
}

/// All points of this executable or shared object, in the order in which the linker has put them.
pub(crate) fn all() -> &'static [Point] {
    #[expect(unsafe_code, reason = "the linker knows where the section begins and ends")]
    // SAFETY: ld(1) defines both symbols for a section whose name is an identifier, at its begin and its end. As nothing they can be used
    // from anywhere.
    unsafe extern "C" {
        #[link_name = "__start_phalanx_fault_points"]
        safe static START: [u8; 0];
        #[link_name = "__stop_phalanx_fault_points"]
        safe static STOP: [u8; 0];
    }
    let (start, stop): (*const Point, *const Point) = ((&raw const START).cast(), (&raw const STOP).cast());
    let count = (stop.addr() - start.addr()) / size_of::<Point>();
    #[expect(unsafe_code, reason = "the section has nothing but points")]
    // SAFETY: `point!` puts nothing into the section but `Point`s, which change by atomics alone and lie side by side, since their size is a
    // multiple of their alignment.
    unsafe {
        std::slice::from_raw_parts(start, count)
    }
}

/// A place at which a fault can be made to happen, by its name: lower-case letters, digits, `-` and `.`, as `train.step`.
///
/// | form | what a plan may have there |
/// |---|---|
/// | `point!("train.step");` | deaths, panics, stops, delays |
/// | `point!("train.step", deaths);` | all but panics: for `Drop`, `extern "C"`, and wherever a panic would leave something half done |
/// | `point!("ckpt.write", \|injected\| return Err(injected.into()));` | errors too: what follows the bars is done then, with an [`Injected`](crate::fault::Injected). It is no closure: `return`, `break` and `?` leave what is around the point |
///
/// It stays in production code. While no plan in force in the process names it, it is one load of a byte and one branch, without any call. A plan is
/// in force only in the workers of a context whose [`Options::faults`](crate::Options::faults) has one.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::{Error, Options, fault, start_processes};
///
/// fn train(_rank: usize, steps: u64) -> anyhow::Result<u64> {
///     for _ in 0..steps {
///         fault::point!("train.step");
///     }
///     Ok(steps)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// // The same executable, without faults and with one.
/// assert_eq!(phalanx::spawn(train, 10, 2)?, [10, 10]);
/// let faults = fault::Faults::new("kill@train.step:rank=1:hit=3")?;
/// let Err(Error::ProcessExited(exception)) =
///     start_processes(train, 10, Options::new(2).faults(&faults))?.join() else { panic!("rank 1 is killed") };
/// assert_eq!((exception.error_index(), exception.signal_name().as_deref()), (1, Some("SIGKILL")));
/// assert_eq!((faults.fired()[0].rank, faults.fired()[0].hit), (1, 3));
/// # Ok(())
/// # }
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! __fault_point {
    (@reach $(#[$lint:meta])* $name:literal, $admits:ident) => {{
        $(#[$lint])*
        #[used]
        #[unsafe(link_section = "phalanx_fault_points")]
        static POINT: $crate::fault::Point = $crate::fault::Point::new(
            $crate::fault::checked_name($name),
            ::core::file!(),
            ::core::line!(),
            $crate::fault::Admits::$admits,
        );
        if POINT.is_named() { POINT.reach() } else { ::core::option::Option::None }
    }};
    ($name:literal) => {{
        let _ = $crate::__fault_point!(@reach $name, Panics);
    }};
    ($name:literal, deaths) => {{
        let _ = $crate::__fault_point!(@reach $name, Deaths);
    }};
    ($name:literal, |$injected:ident| $fail:expr) => {
        if let ::core::option::Option::Some($injected) = $crate::__fault_point!(@reach $name, Errors) {
            $fail
        }
    };
}

/// As the public one, in this crate, whose lints see the static: those of a crate that uses the macro do not look into another's.
macro_rules! point {
    (@lenient $name:literal, $admits:ident) => {
        $crate::__fault_point!(
            @reach #[allow(unsafe_code, clippy::allow_attributes, reason = "only `Point`s are in that section: see `all`")]
            $name, $admits
        )
    };
    ($name:literal, deaths) => {{
        let _ = $crate::point::point!(@lenient $name, Deaths);
    }};
    ($name:literal, |$injected:ident| $fail:expr) => {
        if let Some($injected) = $crate::point::point!(@lenient $name, Errors) {
            $fail
        }
    };
    // A system call, which fails as the kernel would have it: what follows is to take it for one of the kernel's own refusals.
    ($name:literal, call) => {
        $crate::point::point!($name, |injected| return Err(std::io::Error::from_raw_os_error(injected.errno())))
    };
}
pub(crate) use point;

/// The name of a point, which a plan can write: checked when the program is compiled.
///
/// # Panics
/// When it is empty, or has another character than lower-case letters, digits, `-` and `.`, or ends in `.`.
#[doc(hidden)]
#[must_use]
pub const fn checked_name(name: &'static str) -> &'static str {
    let bytes = name.as_bytes();
    assert!(
        !bytes.is_empty() && bytes[bytes.len() - 1] != b'.',
        "a point has a name, which does not end in `.`"
    );
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        let is_allowed = byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        assert!(is_allowed, "the name of a point has lower-case letters, digits, `-` and `.` only");
        at += 1;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(fails: bool) -> io::Result<()> {
        if fails {
            return Err(Injected { point: "test.fails", errno: libc::ENOSPC }.into());
        }
        let _ = point!(@lenient "test.passes", Panics);
        point!("test.passes-too", deaths);
        point!("test.fails", |injected| return Err(injected.into()));
        Ok(())
    }

    #[test]
    fn points_are_listed_whether_they_were_reached_or_not() {
        let own: Vec<_> = all().iter().filter(|point| point.name.starts_with("test.")).collect();
        let known: Vec<_> = own.iter().map(|point| (point.name, point.admits)).collect();
        let expected = [
            ("test.passes", Admits::Panics),
            ("test.passes-too", Admits::Deaths),
            ("test.fails", Admits::Errors),
        ];
        assert!(expected.iter().all(|point| known.contains(point)), "{known:?}");
        assert!(own.iter().all(|point| point.location().0 == file!() && point.location().1 > 200));
        assert!(pass(false).is_ok());
    }

    #[test]
    fn injected_error_keeps_the_kind_and_says_that_it_was_injected() {
        let error = pass(true).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(error.to_string(), "fault injected at test.fails: No space left on device (os error 28)");
    }
}
