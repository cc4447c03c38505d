//! A thread that owns words for as long as the process lives: those of guards that a thread has leaked before it ended.

use std::io::{self, Write};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::{forks, futex};
use super::list::{MOST, MapPin, RobustList};
use super::pending::PendingOp;
use super::word::{OWNER, RobustWord};

/// The thread that takes words now. It lives as long as the process, and so does this.
static CURRENT: AtomicPtr<OwnerThread> = AtomicPtr::new(ptr::null_mut());

struct OwnerThread {
    /// The process that the thread is in: a fork has a copy of this record, but not the thread.
    generation: Option<u32>,
    /// How many words were given to it, which a thread can own a limited number of.
    given: AtomicUsize,
    waiting: Mutex<Vec<Transfer>>,
    /// A futex, counted up when a word is added.
    added: AtomicU32,
}

/// A word on its way from the thread that owns it.
struct Transfer {
    word: NonNull<RobustWord>,
    map_pin: MapPin,
    /// The id of the thread that gives it.
    from: u32,
    /// A futex on which that thread sleeps: 0 until the word was taken over.
    done: Arc<AtomicU32>,
}

// SAFETY: the giving thread has taken the word off its list, and touches it no more; what the map pin holds is `Send`.
unsafe impl Send for Transfer {}

/// Gives a word of this thread, which is on no list at the moment, to the owner thread. Returns when that has it.
pub(super) fn hand_over(word: NonNull<RobustWord>, map_pin: MapPin, from: u32) {
    let done = Arc::new(AtomicU32::new(0));
    let owner = current().unwrap_or_else(|error| give_up(&error));
    let transfer = Transfer { word, map_pin, from, done: done.clone() };
    owner.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(transfer);
    owner.added.fetch_add(1, Release);
    futex::wake_all(&owner.added);
    // This thread must not end before the word has its new owner. It has the word pending meanwhile, and the kernel would find
    // its id there and mark the word as that of a dead owner: the next thread would get the lock while leaked references are
    // used.
    while done.load(Acquire) == 0 {
        // A wait that was disturbed is begun again.
        let _ = futex::wait(&done, 0, None);
    }
}

/// Ends the process.
//
// Nothing less will do: the kernel is about to give the lock to the next thread, while leaked references to its value are in use.
fn give_up(error: &io::Error) -> ! {
    let _ = writeln!(
        io::stderr(),
        "phalanx: a thread ends that has leaked the guard of a lock, and the thread that is to keep the lock taken cannot be \
         made: {error}"
    );
    std::process::abort()
}

/// The thread of this process that has room for one more word; a new one if there is none.
fn current() -> io::Result<&'static OwnerThread> {
    loop {
        let seen = CURRENT.load(Acquire);
        // SAFETY: null, or what `start` has leaked.
        if let Some(owner) = unsafe { seen.as_ref() }
            && owner.generation == forks::generation()
            && owner.given.fetch_add(1, Relaxed) < MOST
        {
            return Ok(owner);
        }
        let new = start()?;
        // Two threads that end at one time may both have made one: the second is not used, and sleeps for ever.
        let _ = CURRENT.compare_exchange(seen, ptr::from_ref(new).cast_mut(), AcqRel, Relaxed);
    }
}

/// Starts an owner thread.
//
// By the C library and not by std: the calling thread ends, and the thread-locals that std uses to start one are gone by now.
fn start() -> io::Result<&'static OwnerThread> {
    let owner: &'static OwnerThread = Box::leak(Box::new(OwnerThread {
        generation: forks::generation(),
        given: AtomicUsize::new(0),
        waiting: Mutex::new(Vec::new()),
        added: AtomicU32::new(0),
    }));
    let mut thread = 0;
    let argument = ptr::from_ref(owner).cast_mut().cast();
    // SAFETY: the argument lives as long as the process, and is shared.
    match unsafe { libc::pthread_create(&raw mut thread, ptr::null(), run, argument) } {
        0 => Ok(owner),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

extern "C" fn run(owner: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: what `start` has leaked.
    let owner = unsafe { &*owner.cast::<OwnerThread>() };
    // Its own list, not that of `thread`: the C library's thread has no thread-locals of ours, and never ends.
    let mut list = RobustList::new().unwrap_or_else(|error| give_up(&error));
    loop {
        let added = owner.added.load(Acquire);
        for transfer in std::mem::take(&mut *owner.waiting.lock().unwrap_or_else(PoisonError::into_inner)) {
            transfer.take_over(&mut list);
        }
        // One that was added since has changed the futex, so that this does not sleep.
        let _ = futex::wait(&owner.added, added, None);
    }
}

impl Transfer {
    fn take_over(self, list: &mut RobustList) {
        // SAFETY: the map pin, which the list keeps for ever, keeps it mapped.
        let word = unsafe { self.word.as_ref() };
        let pending = PendingOp::new(list.head, word);
        let new = list.me.tid;
        // The only transition of a robust word that is not in `sync::futex_lock`: this room is below that one, and no lock
        // there passes from one owner to another without being free in between.
        // Waiters may set their bit at any moment, which must stay. The giving thread waits: nobody else changes the owner.
        let to_us = |seen: u32| (seen & OWNER == self.from).then_some(new | (seen & !OWNER));
        if word.word.fetch_update(SeqCst, SeqCst, to_us).is_err() {
            give_up(&io::Error::other("the word is not the thread's any more"));
        }
        list.enter(word, self.map_pin);
        drop(pending);
        self.done.store(1, Release);
        futex::wake_all(&self.done);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::thread::take;
    use super::*;

    #[test]
    fn words_of_leaked_guards_stay_taken_by_one_thread_of_the_process() {
        let words: Vec<_> = std::iter::repeat_with(|| Arc::new(RobustWord::new())).take(3).collect();
        for word in words.clone() {
            let leaked = std::thread::spawn(move || {
                let keep = || MapPin::lender(word.clone());
                take(&word, keep, |me| -> io::Result<()> {
                    word.word.store(me.tid, SeqCst);
                    Ok(())
                })
            });
            // A join returns when the thread is gone, and the kernel has read its list.
            leaked.join().unwrap().unwrap();
        }
        let owners: Vec<_> = words.iter().map(|word| word.word.load(SeqCst)).collect();
        assert!(owners[0] & OWNER == owners[0] && owners[0] != 0, "{owners:x?}");
        assert_eq!(owners, [owners[0]; 3]);
    }
}
