//! The smallest runtime: one future, in the calling thread.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{Thread, ThreadId};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn waker() -> Waker {
    Arc::new(Unpark(std::thread::current())).into()
}

/// Parks this thread until the future is ready.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let (waker, mut future) = (waker(), pin!(future));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

/// Whether a future that is not ready has its own task woken by being polled.
pub(crate) fn wakes_itself<F: Future>(future: Pin<&mut F>) -> bool {
    struct OfThread(ThreadId, AtomicBool);
    impl Wake for OfThread {
        fn wake(self: Arc<Self>) {
            // The thread that wakes futures does so at once where the event has rung before: that is no poll without end.
            self.1.fetch_or(std::thread::current().id() == self.0, SeqCst);
        }
    }
    let woken = Arc::new(OfThread(std::thread::current().id(), AtomicBool::new(false)));
    assert!(future.poll(&mut Context::from_waker(&woken.clone().into())).is_pending(), "it is ready");
    woken.1.load(SeqCst)
}

/// Asks a future that is not ready once.
pub(crate) fn poll_once<F: Future>(future: Pin<&mut F>) {
    assert!(future.poll(&mut Context::from_waker(&waker())).is_pending(), "it is ready");
}
