//! How one who waits for something lets the others know that it sleeps, so that they wake it, once, and only then.
//!
//! There is one sleeper at a time: it is inside a gate meanwhile. So it is nobody's fault if a sleeper dies: the next one
//! who comes in through the gate puts its bit right. Who was to wake it may die too: then the kernel does.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use crossbeam_utils::Backoff;

use super::patience::{Patience, Stop};
use super::word::{Park, Word};
use crate::sys::atomic_record::atomic_record;
use crate::sys::robust::{self, RobustWord};

atomic_record! {
    /// Who sleeps, and whether it was woken. The `mark` has the lowest bit set while somebody sleeps or is about to; its other
    /// bits count naps and calls. The `holder` is the mark as it was after the last call that was made. The `word` belongs to
    /// the one who makes something happen that is waited for, until it has called.
    pub(crate) struct Nap {
        bed: RobustWord,
        /// Whether the last wait was a long one.
        sleepy: AtomicU32,
    }
}

/// Set while somebody sleeps.
const ASLEEP: u32 = 1;
/// The number of the nap or call.
const NEXT: u32 = 2;

/// Begins a nap; returns the word as it has to stay for the nap to go on. What is waited for is looked for once more after this.
fn lie_down<W: Word>(word: &W) -> u32 {
    let nap = word.add(NEXT + ASLEEP, Relaxed).wrapping_add(NEXT + ASLEEP);
    W::barrier_after_change();
    nap
}

/// Ends it.
fn get_up<W: Word>(word: &W) {
    word.add(ASLEEP.wrapping_neg(), Relaxed);
}

/// Wakes who sleeps, if nobody has during this nap. What it waits for has happened, and then the change of an atomic.
#[inline]
fn call<W: Word, P: Park<W>>(word: &W, called: &W, park: &P) {
    W::barrier_after_change();
    let seen = word.load(Relaxed);
    if seen & ASLEEP != 0 && called.load(Relaxed) != seen {
        wake(word, called, park);
    }
}

#[cold]
fn wake<W: Word, P: Park<W>>(word: &W, called: &W, park: &P) {
    let now = word.add(NEXT, Relaxed).wrapping_add(NEXT);
    park.wake(word, 1);
    called.swap(now, Relaxed);
}

/// How long it is looked for before the first nap: about what it takes to wake somebody, and be answered. When a wait was longer
/// than that, to look was in vain, and kept a processor from who was waited for: the next wait begins with a nap.
const SHORT: u64 = 25_000;

/// Looks for a while.
fn spin<W: Word, P: Park<W>, T>(park: &P, until: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let backoff = Backoff::new();
    loop {
        backoff.snooze();
        match look() {
            None if park.nanos() < until => {}
            found => return found,
        }
    }
}

/// Waits until `look` finds something.
fn wait<W: Word, P: Park<W>, T>(
    (word, caller, sleepy): (&W, &W, &W),
    park: &P,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, P::Stop> {
    if let Some(found) = look() {
        return Ok(found);
    }
    // Who does not wait must not be taken for one that sleeps.
    park.check()?;
    let short = park.nanos() + SHORT;
    if park.spins()
        && sleepy.load(Relaxed) == 0
        && let Some(found) = spin(park, short, &mut look)
    {
        return Ok(found);
    }
    let waited = nap((word, caller), park, look);
    sleepy.swap((park.nanos() > short).into(), Relaxed);
    waited
}

/// Sleeps until `look` finds something.
fn nap<W: Word, P: Park<W>, T>(
    (word, caller): (&W, &W),
    park: &P,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, P::Stop> {
    loop {
        let nap = lie_down(word);
        // Before the look: if the caller dies after the look, this changes, be it before or after one has fallen asleep.
        let calling = caller.load(Acquire);
        let slept = match look() {
            Some(found) => Ok(Some(found)),
            None => park.wait(&[(word, nap), (caller, calling)]).map(|()| None),
        };
        get_up(word);
        match slept.map(|found| found.or_else(&mut look)) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => {}
            Err(stop) => return look().ok_or(stop),
        }
    }
}

/// How who is in a bed sleeps: while `end` is 0, too.
struct Sleeper<'a> {
    patience: &'a Patience,
    end: &'a AtomicU32,
}

impl Park<AtomicU32> for Sleeper<'_> {
    type Stop = Stop;

    fn wait(&self, words: &[(&AtomicU32, u32)]) -> Result<(), Stop> {
        let all: Vec<_> = words.iter().copied().chain([(self.end, 0)]).collect();
        self.patience.sleep(&all)
    }

    fn wake(&self, word: &AtomicU32, count: i32) -> usize {
        self.patience.wake(word, count)
    }

    fn check(&self) -> Result<(), Stop> {
        self.patience.check()
    }

    fn spins(&self) -> bool {
        self.patience.spins()
    }

    fn nanos(&self) -> u64 {
        self.patience.nanos()
    }
}

impl Nap {
    /// Waits until `look` finds something, which it does when `end` is not 0 any more. Only one at a time does, inside a gate.
    pub(crate) fn until<T>(
        &self,
        patience: &Patience,
        end: &AtomicU32,
        look: impl FnMut() -> Option<T>,
    ) -> Result<T, Stop> {
        wait((&self.bed.mark, &self.bed.word, &self.sleepy), &Sleeper { patience, end }, look)
    }

    /// Runs `change`, by which happens what one may wait for, and which ends with an operation that reads, changes and writes an
    /// atomic; then wakes who waits. If this thread dies in between, the kernel wakes it. Only one at a time does, inside a gate.
    #[inline]
    pub(crate) fn tell<T>(&self, change: impl FnOnce() -> T) {
        robust::with_pending_alone(&self.bed, || {
            change();
            call(&self.bed.mark, &self.bed.holder, &Patience::None);
        });
    }

    /// Who slept has died. Only inside the gate.
    pub(crate) fn tidy(&self) {
        if self.bed.mark.load(Relaxed) & ASLEEP != 0 {
            get_up(&self.bed.mark);
        }
    }
}

#[cfg(test)]
mod kernel_tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;

    use super::super::record_with::RecordWith;
    use super::*;
    use crate::sys::robust::OWNER_DIED;

    /// A sleeper, and a caller that dies between the change and the call when `is_time` says so of the nap.
    fn race(is_time: impl Fn(&Nap) -> bool + Send + 'static) {
        let nap = RecordWith::<Nap, ()>::new("test", ()).unwrap();
        let (caller, happened) = (nap.clone(), Arc::new(AtomicBool::new(false)));
        let happens = happened.clone();
        robust::testing::doomed(move || {
            caller.fields().tell(|| {
                while !is_time(caller.fields()) {
                    std::thread::yield_now();
                }
                happens.store(true, SeqCst);
                robust::testing::die()
            });
        });
        let look = || happened.load(SeqCst).then_some(());
        nap.fields().until(&Patience::Endless, &AtomicU32::new(0), look).unwrap();
        assert_eq!(nap.fields().bed.mark.load(SeqCst) & ASLEEP, 0);
    }

    #[test]
    fn sleeper_finds_what_happened_though_the_caller_died_before_it_called() {
        (0..200).for_each(|_| race(|nap| nap.bed.mark.load(SeqCst) & ASLEEP != 0));
    }

    #[test]
    fn sleeper_finds_what_happened_though_the_caller_died_before_it_was_asleep() {
        let (nap, happened) =
            (RecordWith::<Nap, ()>::new("test", ()).unwrap(), Arc::new(AtomicBool::new(false)));
        let mut is_first = true;
        let look = || {
            if !std::mem::take(&mut is_first) {
                return happened.load(SeqCst).then_some(());
            }
            // All that happens now comes too late for this look, which is the last before the sleep.
            let (caller, happens) = (nap.clone(), happened.clone());
            robust::testing::doomed(move || {
                caller.fields().tell(|| {
                    happens.store(true, SeqCst);
                    robust::testing::die()
                });
            });
            while nap.fields().bed.word.load(SeqCst) & OWNER_DIED == 0 {
                std::thread::yield_now();
            }
            None
        };
        let (bed, end) = (&nap.fields().bed, AtomicU32::new(0));
        let sleeper = Sleeper { patience: &Patience::Endless, end: &end };
        super::nap((&bed.mark, &bed.word), &sleeper, look).unwrap();
    }
}

#[cfg(all(test, loom))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Release;

    use loom::sync::atomic::AtomicU32;
    use loom::thread;

    use super::super::model::{Futex, KERNELS, Kernel, check};
    use super::*;
    use crate::sys::robust::WAITERS;

    #[derive(Default)]
    struct Bed {
        word: AtomicU32,
        caller: AtomicU32,
        called: AtomicU32,
        sleepy: AtomicU32,
        messages: AtomicU32,
    }

    /// One waits for a message, and then for another, as the inside of a gate does.
    fn receive(bed: &Bed, futex: &Futex) {
        for wanted in 1..=2 {
            let look = || (bed.messages.load(Acquire) >= wanted).then_some(());
            wait((&bed.word, &bed.caller, &bed.sleepy), futex, look).unwrap();
        }
    }

    fn put(bed: &Bed) {
        bed.messages.fetch_add(1, Release);
    }

    /// One waits for two messages, and another thread puts them in some way.
    fn race(futex: impl Fn() -> Futex + Sync + Send + 'static, producer: fn(&Bed, &Futex)) {
        check(move || {
            let (bed, futex) = (Arc::new(Bed::default()), futex());
            let sleeper = {
                let (bed, futex) = (bed.clone(), futex.clone());
                thread::spawn(move || {
                    receive(&bed, &futex);
                    futex.done();
                })
            };
            producer(&bed, &futex);
            futex.await_done(1);
            sleeper.join().unwrap();
        });
    }

    #[test]
    fn loom_sleeper_is_woken_for_each_message() {
        for kernel in KERNELS {
            race(
                move || Futex::on(kernel),
                |bed, futex| {
                    for _ in 0..2 {
                        put(bed);
                        call(&bed.word, &bed.called, futex);
                    }
                },
            );
        }
    }

    #[test]
    fn loom_next_message_wakes_when_the_producer_of_the_last_died_before_it_could() {
        for kernel in KERNELS {
            race(
                move || Futex::on(kernel),
                |bed, futex| {
                    put(bed);
                    // It dies in `wake`, after its first step, and the kernel has not noticed yet.
                    AtomicU32::barrier_after_change();
                    if bed.word.load(Relaxed) & ASLEEP != 0 {
                        bed.word.add(NEXT, Relaxed);
                    }
                    put(bed);
                    call(&bed.word, &bed.called, futex);
                },
            );
        }
    }

    /// The last producer of all dies as soon as its messages are there, as the owner of a word that is pending.
    const DIES: fn(&Bed, &Futex) = |bed, futex| {
        bed.caller.store(1 | WAITERS, Release);
        put(bed);
        put(bed);
        futex.bury(&bed.caller, 1);
    };

    #[test]
    fn loom_producer_that_dies_before_it_calls_leaves_nobody_asleep() {
        // Of a word with an owner every kernel tells.
        KERNELS.iter().for_each(|&kernel| race(move || Futex::on(kernel).trusting(), DIES));
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn loom_finds_who_sleeps_for_ever_if_the_word_that_is_pending_does_not_change() {
        race(
            || Futex::on(Kernel::WakesWithoutOwner).trusting(),
            |bed, futex| {
                put(bed);
                put(bed);
                futex.bury(&bed.caller, 1);
            },
        );
    }
}
