//! Waiting for workers in asynchronous programs.

use std::os::fd::AsFd;
use std::task::Poll;
use std::time::Duration;

use super::join::ProcessContext;
use crate::error::Error;
use crate::reactor::Watch;

impl<R> ProcessContext<R> {
    /// Waits until all workers have succeeded, for asynchronous programs: then [`into_results`](Self::into_results) has what they returned.
    /// The future blocks no thread, needs no runtime and works in any; it is `Send`. A thread of phalanx, `phalanx-async`, wakes it; that
    /// thread is there while something is awaited and for a second after that.
    ///
    /// Each poll does what [`join_timeout`](Self::join_timeout) with zero does: after a failure it ends the other workers, step by step. So they
    /// are ended while the future is awaited; where nobody polls it nothing happens. Dropping the *context* inside of a runtime waits for
    /// the workers as any drop does.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Options, start_processes};
    /// # fn block_on<F: Future>(future: F) -> F::Output {
    /// #     struct Unpark(std::thread::Thread);
    /// #     impl std::task::Wake for Unpark {
    /// #         fn wake(self: std::sync::Arc<Self>) { self.0.unpark() }
    /// #     }
    /// #     let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    /// #     let mut future = std::pin::pin!(future);
    /// #     loop {
    /// #         let polled = future.as_mut().poll(&mut std::task::Context::from_waker(&waker));
    /// #         if let std::task::Poll::Ready(output) = polled { return output }
    /// #         std::thread::park();
    /// #     }
    /// # }
    ///
    /// fn square(rank: usize, _: ()) -> anyhow::Result<usize> {
    ///     Ok(rank * rank)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// # block_on(async {
    /// let mut context = start_processes(square, (), Options::new(3))?;
    /// context.join_async().await?;
    /// assert_eq!(context.into_results()?, [0, 1, 4]);
    /// # anyhow::Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// A future that is dropped has changed nothing that a later call would not find.
    ///
    /// # Errors
    /// The failure that happened first in time, when the last worker is gone. [`Error::System`] when there is no descriptor or thread
    /// left to wait with.
    pub async fn join_async(&mut self) -> Result<(), Error> {
        let mut watch = Watch::default();
        let join = std::future::poll_fn(|context| {
            if self.join_timeout(Duration::ZERO)? {
                return Poll::Ready(Ok(()));
            }
            let armed = watch.arm(context, &[self.as_fd()]);
            armed.map_err(Error::system("have a task woken by the end of a worker (epoll)"))?;
            // Once more: what came before that was no event.
            match self.join_timeout(Duration::ZERO)? {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            }
        });
        join.await
    }
}
