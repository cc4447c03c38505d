//! Putting and taking in asynchronous programs: futures that look at the queue whenever its event rings.

use std::borrow::Borrow;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::core::Core;
use super::error::QueueError;
use super::fifo::Queue;
use super::message::Outgoing;
use crate::reactor::Watch;
use crate::sync::abort::{self, AbortedBy};
use crate::sync::wait_policy::WaitPolicy;

impl<T: DeserializeOwned> Queue<T> {
    /// As [`get`](Self::get), for asynchronous programs: the future is ready when there is a value, and blocks no thread until
    /// then. It needs no runtime and works in any; it is `Send`. A thread of phalanx, `phalanx-async`, wakes it; that thread is there
    /// while something is awaited and for a second after that, so that
    /// [`StartMethod::Fork`](crate::StartMethod::Fork) is refused meanwhile.
    ///
    /// A poll does what [`try_get`](Self::try_get) does: it may wait for a millisecond where another thread is in the middle of a get,
    /// and deserialises the value.
    ///
    /// ```
    /// use phalanx::Queue;
    /// # use std::pin::pin;
    /// # use std::task::{Context, Poll, Waker};
    /// # /// What a runtime does.
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     struct Unpark(std::thread::Thread);
    /// #     impl std::task::Wake for Unpark {
    /// #         fn wake(self: std::sync::Arc<Self>) { self.0.unpark() }
    /// #     }
    /// #     let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    /// #     let mut future = pin!(future);
    /// #     loop {
    /// #         if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) { return output }
    /// #         std::thread::park();
    /// #     }
    /// # }
    ///
    /// let (words, lengths) = (Queue::<String>::bounded(8)?, Queue::bounded(8)?);
    /// let measure = async {
    ///     while let Ok(word) = words.get_async().await {
    ///         lengths.put_async(word.len()).await?;
    ///     }
    ///     lengths.close()
    /// };
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| ["a", "phalanx"].iter().try_for_each(|word| words.put(word.to_string())).and(words.close()));
    ///     block_on(measure)
    /// })?;
    /// assert_eq!(lengths.iter().collect::<Result<Vec<_>, _>>()?, [1, 7]);
    /// # Ok::<(), phalanx::QueueError>(())
    /// ```
    ///
    /// # Cancel safety
    /// A future that is dropped before it was ready has taken nothing.
    ///
    /// # Errors
    /// Those of [`get`](Self::get); [`QueueError::System`] too when there is no descriptor or thread left to wait with.
    pub async fn get_async(&self) -> Result<T, QueueError> {
        let (core, mut watch) = (self.core(), Watch::default());
        let take = || unless_later(core.get(&WaitPolicy::Poll));
        let got = std::future::poll_fn(|context| {
            // A message that is there, and that another consumer is about to take, or to leave.
            let watches = (|| _ = core.watch(), || core.len() > 0);
            poll(&mut watch, context, core, take, watches).map(|got| got?)
        });
        // Decoded here, when nothing is awaited any more.
        got.await?.decode()
    }
}

impl<T: Serialize> Queue<T> {
    /// As [`put`](Self::put), for asynchronous programs: the future is ready when there was room, and the value is in the queue. What
    /// [`get_async`](Self::get_async) says of threads and runtimes holds here too. It is `Send` if the value is. The value is serialised
    /// at the first poll.
    ///
    /// # Cancel safety
    /// A future that is dropped before it was ready has put nothing: the value is not in the queue, nor any part of it, and what only one
    /// process can have is still here.
    ///
    /// # Errors
    /// Those of [`put`](Self::put); [`QueueError::System`] too when there is no descriptor or thread left to wait with.
    pub async fn put_async(&self, value: impl Borrow<T>) -> Result<(), QueueError> {
        let (core, mut watch) = (self.core(), Watch::default());
        let mut message = Outgoing::of(value.borrow(), core.inline())?;
        let put = std::future::poll_fn(|context| {
            let put = || unless_later(core.put_undelivered(&mut message, &WaitPolicy::Poll));
            let fields = core.fields();
            let watches = (|| core.watch_room(), || fields.put.is_in_the_middle(&fields.no_room));
            poll(&mut watch, context, core, put, watches).map(|put| put?)
        });
        put.await?;
        message.deliver();
        Ok(())
    }
}

/// `None`: it is to be tried again, later.
fn unless_later<R>(tried: Result<R, QueueError>) -> Option<Result<R, QueueError>> {
    match tried {
        Err(QueueError::Empty | QueueError::Full) => None,
        tried => Some(tried),
    }
}

/// Tries something, and has the task woken for the next try if it comes to nothing. `watch_queue` has the queue ring its event at the
/// next change; `is_held_up` says whether the try failed although there was something to do, of which no event would tell.
fn poll<R>(
    watch: &mut Watch,
    context: &Context<'_>,
    core: &Core,
    mut attempt: impl FnMut() -> Option<R>,
    (watch_queue, is_held_up): (impl Fn(), impl Fn() -> bool),
) -> Poll<Result<R, QueueError>> {
    // Most queues have what is wanted: then nothing is registered anywhere.
    if let Some(done) = attempt() {
        return Poll::Ready(Ok(done));
    }
    // Before the next try, so that each change after it is an edge that the epoll sees.
    let mut fds = vec![core.event()?];
    fds.extend(abort::events());
    watch.arm(context, &fds).map_err(QueueError::system("have a task woken by a queue (epoll)"))?;
    if let Some(by) = AbortedBy::now() {
        return Poll::Ready(Err(QueueError::aborted(by)));
    }
    watch_queue();
    if let Some(done) = attempt() {
        return Poll::Ready(Ok(done));
    }
    if is_held_up() {
        context.waker().wake_by_ref();
    }
    Poll::Pending
}
