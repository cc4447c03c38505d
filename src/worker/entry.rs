//! Entry: how a plain Rust function is found again in the child.
//!
//! For every function there is a constant record in the executable. The launcher sends the record's offset; the
//! child is the same executable, so the record lies at the same offset from wherever the loader put it. A code
//! address would not do: the compiler folds equal functions and may give one function several addresses.

pub(crate) mod task;

use std::any::Any;
use std::marker::PhantomData;
use std::ptr::NonNull;

use anyhow::anyhow;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::info::{self, WorkerInfo};
use crate::error::{Callee, Error, WorkerError};
use crate::sys::image::Image;
use crate::transfer::received::Received;
use crate::wire::codec::{self, Encoded};
use crate::wire::message::Job;

/// "PHLXENTR": what a record begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"PHLXENTR");

/// A function that can be run in a worker.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry {
    magic: u64,
    name: fn() -> &'static str,
    call: Call,
}

/// A function that takes what it has beside its arguments (its rank, as `usize`; a task's state; nothing, as `()`), the encoded
/// arguments, their attachments, and a buffer; returns the result, encoded behind the bytes that the buffer has.
type Call = fn(&mut dyn Any, &[u8], Received, Vec<u8>) -> anyhow::Result<Encoded>;

/// What went wrong beside the function itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The arguments are no value of the function's type.
    #[error("cannot read the arguments: {0}")]
    Arguments(String),
    /// The result's type refuses to be written.
    #[error("cannot serialise the result: {0}")]
    Result(String),
}

/// The record of the function type `F`.
pub(crate) fn of<F, A, R, E>() -> &'static Entry
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    Record::<F, A, R, E>::ENTRY
}

/// The record of a preload function.
pub(crate) fn of_preload<F, E>() -> &'static Entry
where
    F: Fn() -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    Preload::<F, E>::ENTRY
}

struct Preload<F, E>(PhantomData<(F, E)>);

impl<F, E> Preload<F, E>
where
    F: Fn() -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    const ENTRY: &'static Entry =
        &Entry { magic: MAGIC, name: std::any::type_name::<F>, call: call_preload::<F, E> };
}

#[inline(never)]
fn call_preload<F, E>(_: &mut dyn Any, _: &[u8], _: Received, into: Vec<u8>) -> anyhow::Result<Encoded>
where
    F: Fn() -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    zero_sized_function::<F>()().map_err(Into::into)?;
    write_result(&(), into)
}

/// The record of what runs before a worker's function.
pub(crate) fn of_hook<F, E>() -> &'static Entry
where
    F: Fn(&WorkerInfo) -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    Hook::<F, E>::ENTRY
}

struct Hook<F, E>(PhantomData<(F, E)>);

impl<F, E> Hook<F, E>
where
    F: Fn(&WorkerInfo) -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    const ENTRY: &'static Entry =
        &Entry { magic: MAGIC, name: std::any::type_name::<F>, call: call_hook::<F, E> };
}

#[inline(never)]
fn call_hook<F, E>(_: &mut dyn Any, _: &[u8], _: Received, into: Vec<u8>) -> anyhow::Result<Encoded>
where
    F: Fn(&WorkerInfo) -> Result<(), E> + Copy + Send + 'static,
    E: WorkerError,
{
    let info = info::worker_info().ok_or_else(|| anyhow!("this process is no worker"))?;
    zero_sized_function::<F>()(&info).map_err(Into::into)?;
    write_result(&(), into)
}

struct Record<F, A, R, E>(PhantomData<(F, A, R, E)>);

impl<F, A, R, E> Record<F, A, R, E>
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    const ENTRY: &'static Entry =
        &Entry { magic: MAGIC, name: std::any::type_name::<F>, call: call::<F, A, R, E> };
}

/// Decodes the arguments, calls the function, encodes its result. In a traceback the frames below this one are the library's.
#[inline(never)]
fn call<F, A, R, E>(
    beside: &mut dyn Any,
    arguments: &[u8],
    received: Received,
    into: Vec<u8>,
) -> anyhow::Result<Encoded>
where
    F: Fn(usize, A) -> Result<R, E> + Copy + Send + 'static,
    A: DeserializeOwned,
    R: Serialize,
    E: WorkerError,
{
    let rank = *beside_of::<usize>(beside)?;
    let arguments = read_arguments(arguments, received)?;
    write_result(&zero_sized_function::<F>()(rank, arguments).map_err(Into::into)?, into)
}

/// What a function gets beside its arguments.
fn beside_of<T: 'static>(beside: &mut dyn Any) -> anyhow::Result<&mut T> {
    // Who calls the record made it for such a caller, so that this never fails; a wrong type must not become undefined behaviour.
    let wrong = || anyhow!("its caller has no {} for this function", std::any::type_name::<T>());
    beside.downcast_mut().ok_or_else(wrong)
}

fn read_arguments<A: DeserializeOwned>(arguments: &[u8], received: Received) -> Result<A, CallError> {
    // Attachments that no argument has taken are dropped here.
    codec::decode::<A>(arguments, received).0.map_err(CallError::Arguments)
}

fn write_result<R: Serialize>(result: &R, into: Vec<u8>) -> anyhow::Result<Encoded> {
    Ok(codec::encode_behind(result, into).map_err(CallError::Result)?)
}

/// A compile error for a function whose type has bytes. Each public function that takes a function calls this itself, since the
/// compiler's message names only the call of the function in which the assertion fails.
pub(crate) const fn assert_plain<F>() {
    assert!(
        size_of::<F>() == 0,
        "phalanx: this is a closure that captures variables, or a function pointer, neither of which another \
         process has: pass a plain `fn` or a closure that captures nothing, and what it needs in the arguments \
         (in a pool: `Pool::map_with`, or `PoolOptions::with_state`)"
    );
}

/// A value of a function type. Function items, and closures that capture nothing, have no bytes: there is nothing to send, and a
/// value can be made of nothing.
#[expect(
    unsafe_code,
    reason = "a function item cannot be named in another process, but it has no bytes that would have to be sent"
)]
pub(crate) fn zero_sized_function<F: Copy + Send + 'static>() -> F {
    const { assert_plain::<F>() }
    // SAFETY: F has no bytes to read, as just asserted. The launcher had a value of F, so F is inhabited;
    // F is Copy, 'static and Send, so it is no token of uniqueness, of a lifetime or of a thread.
    unsafe { NonNull::<F>::dangling().read() }
}

impl Entry {
    /// The path of the function, as the compiler names its type.
    pub(crate) fn name(&self) -> &'static str {
        (self.name)()
    }

    /// What a traceback needs to know of the function and of the hook that runs before it, to cut off the library's own frames.
    pub(crate) fn callee(&self, hook: Option<&Self>) -> Callee {
        let hook = hook.map(|hook| (hook.name(), hook.call as usize));
        Callee { name: self.name(), trampoline: self.call as usize, hook }
    }

    /// The offset of this record from the executable's load address, in bytes.
    ///
    /// # Errors
    /// [`Error::FunctionElsewhere`] when record or function lie in a shared object: a worker may have that at another place, or another
    /// version of it.
    pub(crate) fn offset(&'static self, image: &Image) -> Result<u64, Error> {
        let parts = [std::ptr::from_ref(self).addr(), self.name as usize, self.call as usize];
        if parts.iter().any(|&address| image.offset_of(address).is_none()) {
            return Err(Error::FunctionElsewhere { function: self.name() });
        }
        image.offset_of(parts[0]).ok_or(Error::FunctionElsewhere { function: self.name() })
    }

    /// Decodes the arguments, calls the function, and encodes its result behind the bytes of `into`.
    pub(crate) fn call(
        &self,
        beside: &mut dyn Any,
        arguments: &[u8],
        received: Received,
        into: Vec<u8>,
    ) -> anyhow::Result<Encoded> {
        (self.call)(beside, arguments, received, into)
    }
}

/// The functions that a worker calls: the hook of `Options::on_start`, then the function of the context.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) hook: Option<&'static Entry>,
    pub(super) entry: &'static Entry,
}

/// Finds the records that `job` names; the error says why one is not there.
pub(super) fn find(job: &Job, image: &Image) -> Result<Called, String> {
    let hook = job.setup.hook.as_ref().map(|(offset, name)| find_at(&job.image, *offset, name, image));
    let entry = find_at(&job.image, job.entry, &job.function, image)?;
    Ok(Called { hook: hook.transpose()?, entry })
}

/// Finds the record of a function of that name at an offset in a build.
pub(crate) fn find_at(
    build: &[u8],
    offset: u64,
    function: &str,
    image: &Image,
) -> Result<&'static Entry, String> {
    if build != image.id() {
        return Err("this executable is another build than the launcher's".to_owned());
    }
    let entry = at(offset, image)
        .ok_or_else(|| format!("there is no function at offset {offset:#x} of this executable"))?;
    if entry.name() != function {
        return Err(format!("offset {offset:#x} has `{}`, not `{function}`", entry.name()));
    }
    Ok(entry)
}

/// The record at an offset in the executable of this process; `None`: there is none.
#[expect(unsafe_code, reason = "the one place where an offset becomes a reference, after every check")]
pub(crate) fn at(offset: u64, image: &Image) -> Option<&'static Entry> {
    let address = image.address_of(offset, size_of::<Entry>())?;
    if !address.is_multiple_of(align_of::<Entry>()) {
        return None;
    }
    let record = std::ptr::with_exposed_provenance::<Entry>(address);
    // SAFETY: the address is aligned and the record lies in the executable's mapped segments, where a word may be
    // read as an integer whatever it is; the magic is the first of an Entry (repr C).
    let magic = unsafe { record.cast::<u64>().read() };
    // SAFETY: only records of this module begin with this word, in a build that the image id proved to be the
    // launcher's own; they are constants, so the reference lives as long as the program.
    (magic == MAGIC).then(|| unsafe { &*record })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(_rank: usize, x: u32) -> anyhow::Result<u32> {
        Ok(x * 2)
    }

    fn entry_of<F: Fn(usize, u32) -> anyhow::Result<u32> + Copy + Send + 'static>(_: F) -> &'static Entry {
        of::<F, u32, u32, anyhow::Error>()
    }

    fn job_of(entry: &'static Entry, image: &Image) -> Job {
        Job {
            image: image.id().to_vec(),
            entry: entry.offset(image).unwrap(),
            function: entry.name().to_owned(),
            ..Job::default()
        }
    }

    #[test]
    fn entry_found_by_offset_calls_its_function() {
        let image = Image::main().unwrap();
        for entry in [entry_of(double), entry_of(|_, x| Ok(x * 2))] {
            let found = find(&job_of(entry, image), image).unwrap().entry;
            let result = found.call(
                &mut 0_usize,
                &codec::encode_plain(&21_u32).unwrap(),
                Received::default(),
                Vec::new(),
            );
            assert_eq!(codec::decode_plain::<u32>(&result.unwrap().bytes), Ok(42));
        }
    }

    #[test]
    fn every_check_refuses_before_the_jump() {
        let image = Image::main().unwrap();
        let good = job_of(entry_of(double), image);
        let refused = |change: fn(&mut Job)| {
            let mut job = good.clone();
            change(&mut job);
            find(&job, image).unwrap_err()
        };
        assert!(refused(|job| job.image = vec![1]).contains("another build"));
        assert!(refused(|job| job.entry = u64::MAX).contains("no function"));
        assert!(refused(|job| job.entry += 1).contains("no function"));
        assert!(refused(|job| job.entry += 8).contains("no function"));
        assert!(refused(|job| job.function = "other".into()).contains("not `other`"));
    }

    #[test]
    fn entry_outside_of_the_executable_is_an_error() {
        let heap: &'static Entry = Box::leak(Box::new(Entry { magic: MAGIC, ..*entry_of(double) }));
        assert!(matches!(heap.offset(Image::main().unwrap()), Err(Error::FunctionElsewhere { .. })));
    }
}
