//! What a future of a pool waits by: a task or a map in an asynchronous program.
//
// A future that is not ready has no thread that would take results out of the queue. So each poll does that, for all that wait, unless
// a thread is at it; and it is woken by whatever may bring what it waits for:
//
// - by the event of the queue, when a worker puts a result, or the pool its nudge after it has told a failure
// - by the thread that takes results for all, when it has delivered something (`Hub::tell`), or has stopped taking them (`Pumping`)

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::task::Context;

use super::hub::Hub;
use super::inbox::Inbox;
use crate::queue::QueueError;
use crate::reactor::Watch;
use crate::sync::abort::{self, AbortedBy};

/// What a future holds that is not ready.
#[derive(Debug, Default)]
pub(super) struct Awaits {
    watch: Watch,
    counted: Option<Counted>,
}

/// Counts one future more.
#[derive(Debug)]
struct Counted(Arc<Hub>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.futures.fetch_sub(1, SeqCst);
    }
}

impl Awaits {
    /// Has the task of `context` woken when something may have come for an inbox, and takes in what has come by now. The caller looks into
    /// the inbox after this.
    ///
    /// # Errors
    /// When nothing will come any more, the wait is aborted, or the system has nothing left to wait with.
    pub(super) fn arm(
        &mut self,
        hub: &Arc<Hub>,
        inbox: &Inbox,
        context: &Context<'_>,
    ) -> Result<(), QueueError> {
        // Before the look: a thread that stops taking results either has been seen to take them, and then sees this one counted, or
        // has stopped, and this one takes them.
        self.counted.get_or_insert_with(|| {
            hub.futures.fetch_add(1, SeqCst);
            Counted(hub.clone())
        });
        inbox.wake_task(context.waker().clone());
        let results = hub.results.core();
        let mut fds = vec![results.event()?];
        fds.extend(abort::events());
        let armed = self.watch.arm(context, &fds);
        armed.map_err(QueueError::system("have a task woken by a pool (epoll)"))?;
        if let Some(by) = AbortedBy::now() {
            return Err(QueueError::aborted(by));
        }
        results.watch();
        hub.look();
        if results.is_closed() && inbox.is_empty() { Err(QueueError::Closed) } else { Ok(()) }
    }
}
