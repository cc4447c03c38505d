//! A reference into something that it keeps: the address is computed and checked once.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// A `T` that lies in what an [`Arc`] owns.
pub(crate) struct HeldRef<T> {
    target: NonNull<T>,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: it is a `&T` and an `Arc` of what is `Send` and `Sync`.
unsafe impl<T: Sync> Send for HeldRef<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for HeldRef<T> {}

impl<T> HeldRef<T> {
    /// What `find` finds in the owner.
    pub(crate) fn new<O: Any + Send + Sync>(owner: Arc<O>, find: impl FnOnce(&O) -> &T) -> Self {
        let target = NonNull::from(find(&owner));
        Self { target, owner }
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        // SAFETY: `find` borrowed it from the owner, which stays where it is and is not changed as long as this reference is counted
        // (`Arc::get_mut` gives nothing meanwhile).
        unsafe { self.target.as_ref() }
    }
}

impl<T> Clone for HeldRef<T> {
    fn clone(&self) -> Self {
        Self { target: self.target, owner: self.owner.clone() }
    }
}

impl<T> fmt::Debug for HeldRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldRef").field(&self.target).finish()
    }
}
