//! A place that a signal handler can read and a forked child can set anew.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A reference that may be replaced; reading it takes no lock.
#[derive(Debug)]
pub(crate) struct Global<T: 'static>(AtomicPtr<T>);

impl<T: Sync> Global<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn set(&self, target: &'static T) {
        self.0.store(ptr::from_ref(target).cast_mut(), Ordering::Release);
    }

    /// Sets it if it is not set; says whether it did.
    pub(crate) fn set_first(&self, target: &'static T) -> bool {
        let target = ptr::from_ref(target).cast_mut();
        self.0.compare_exchange(ptr::null_mut(), target, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    pub(crate) fn clear(&self) {
        self.0.store(ptr::null_mut(), Ordering::Release);
    }

    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or came from a `&'static T` in `set`.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }
}
