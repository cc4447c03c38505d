//! Handles of the same pool whose calls have other terms.

use std::time::Duration;

use super::error::TaskFailure;
use super::handle::Pool;
use super::state::StatePool;
use super::terms::CallTerms;

impl Pool {
    /// The same pool, by a handle whose calls and maps are begun again so often, whatever [`PoolOptions::retries`] says.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::pool::Pool;
    /// use phalanx::sync::Value;
    ///
    /// fn charge(begun: Value<u32>) -> anyhow::Result<()> {
    ///     begun.fetch_add(1);
    ///     std::process::abort()
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let (once, thrice) = (Value::new(0)?, Value::new(0)?);
    /// assert!(pool.submit(charge, once.clone())?.join().is_err());
    /// // Where it does no harm, the call is tried again.
    /// let failed = pool.with_retries(2).submit(charge, thrice.clone())?.join().unwrap_err();
    /// assert_eq!((once.get(), thrice.get(), failed.earlier_attempts().len()), (1, 3, 2));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`PoolOptions::retries`]: super::PoolOptions::retries
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_retries(&self, most: u32) -> Self {
        self.with(|terms| terms.retries = most)
    }

    /// The same pool, by a handle whose calls and items are begun again only after failures for which `may` is true; retries are still
    /// bounded by their number. Without it each is that ended by the death of its worker or by its time limit.
    ///
    /// The pool's own thread calls `may`, so it must not wait. Where it panics the call is not begun again.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use phalanx::{Cause, Options};
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// /// What had too little memory would have too little again.
    /// fn is_worth_it(failure: &TaskFailure) -> bool {
    ///     match failure {
    ///         TaskFailure::WorkerEnded(outcome) => !matches!(outcome.cause(), Some(Cause::OutOfMemory { .. })),
    ///         TaskFailure::TimedOut { .. } => false,
    ///         _ => true,
    ///     }
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).retries(3).build()?.with_retry_if(is_worth_it);
    /// let failed = pool.submit(|()| -> anyhow::Result<()> { std::process::abort() }, ())?.join().unwrap_err();
    /// assert_eq!(failed.earlier_attempts().len(), 3);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_retry_if(&self, may: fn(&TaskFailure) -> bool) -> Self {
        self.with(|terms| terms.retry_if = Some(may))
    }

    /// The same pool, by a handle whose calls and items may run for so long, whatever [`PoolOptions::timeout`] says; `None`: for ever.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::Options;
    /// use phalanx::pool::{Pool, TaskFailure};
    ///
    /// fn answer(request: u64) -> anyhow::Result<u64> {
    ///     while request == 0 {
    ///         std::thread::park(); // nobody answers that
    ///     }
    ///     Ok(2 * request)
    /// }
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::options(Options::new(1)).grace(Duration::ZERO).build()?;
    /// let impatient = pool.with_timeout(Duration::from_millis(10));
    /// let failed = impatient.submit(answer, 0)?.join().unwrap_err();
    /// assert!(matches!(failed.failure(), TaskFailure::TimedOut { .. }), "{failed}");
    /// assert_eq!(pool.submit(answer, 7)?.join()?, 14);
    /// assert_eq!(impatient.with_timeout(None).submit(answer, 8)?.join()?, 16);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`PoolOptions::timeout`]: super::PoolOptions::timeout
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_timeout(&self, limit: impl Into<Option<Duration>>) -> Self {
        self.with(|terms| terms.limit = limit.into())
    }

    /// The same pool, by a handle whose calls and items may begin and run until so long after they were given to it, whatever
    /// [`PoolOptions::deadline`] says; `None`: at any time.
    ///
    /// ```
    /// # phalanx::auto_init!();
    /// use std::time::Duration;
    /// use phalanx::pool::Pool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = Pool::new(1)?;
    /// let late = pool.with_deadline(Duration::ZERO).map(|x: u64| anyhow::Ok(x), 0..3)?;
    /// assert!(late.into_iter().all(|result| !result.unwrap_err().began()));
    /// assert_eq!(pool.map(|x: u64| anyhow::Ok(x), 0..3)?.sum::<Result<u64, _>>()?, 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`PoolOptions::deadline`]: super::PoolOptions::deadline
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_deadline(&self, after: impl Into<Option<Duration>>) -> Self {
        self.with(|terms| terms.deadline = after.into())
    }

    fn with(&self, change: impl FnOnce(&mut CallTerms)) -> Self {
        let mut pool = self.clone();
        change(&mut pool.terms);
        pool
    }
}

impl<S: 'static> StatePool<S> {
    /// As [`Pool::with_retries`].
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_retries(&self, most: u32) -> Self {
        Self::of(self.pool().with_retries(most))
    }

    /// As [`Pool::with_retry_if`].
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_retry_if(&self, may: fn(&TaskFailure) -> bool) -> Self {
        Self::of(self.pool().with_retry_if(may))
    }

    /// As [`Pool::with_timeout`].
    ///
    /// The time in which a worker makes its state does not count; that is what
    /// [`StateOptions::init_timeout`](super::StateOptions::init_timeout) is for.
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_timeout(&self, limit: impl Into<Option<Duration>>) -> Self {
        Self::of(self.pool().with_timeout(limit))
    }

    /// As [`Pool::with_deadline`].
    #[must_use = "the handle that it is called on does not change"]
    pub fn with_deadline(&self, after: impl Into<Option<Duration>>) -> Self {
        Self::of(self.pool().with_deadline(after))
    }
}
