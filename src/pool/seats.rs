//! Pure: how many workers a pool is to have, and which are to be started, from what is known of them.
//!
//! A *place* is what the program sees as one worker: a number, with the options of its rank. It has one *seat*, or two where workers are
//! replaced as they work: so the successor can be started, and set itself up, before the one that leaves has ended. In the ledger a
//! worker is known by its seat, so that what one has in its hands is never taken for the other's.
//!
//! Seat `s` belongs to place `s % places`. A seat goes from Empty to Taken when its worker is started, to Leaving when that has said that it
//! takes no more tasks, and to Empty when it is reaped and its tasks have been told. A place never has two workers that stay: the second seat is
//! taken only while the worker of the first leaves, or the other way round.

use std::time::Duration;

/// One seat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seat {
    /// There is no process.
    Empty,
    /// Its worker takes tasks, or will when its place is free.
    Taken,
    /// Its worker ends after the task that it has.
    Leaving,
}

/// All seats: those of the places, in order, then the second ones.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    places: usize,
    seats: Vec<Seat>,
}

impl Seats {
    pub(super) fn new(places: usize, seats: usize) -> Self {
        Self { places, seats: vec![Seat::Empty; seats] }
    }

    pub(super) fn set(&mut self, seat: usize, what: Seat) {
        self.seats[seat] = what;
    }

    /// Notes that a worker leaves, if it has not ended.
    pub(super) fn note_leaving(&mut self, seat: usize) {
        if self.seats[seat] == Seat::Taken {
            self.seats[seat] = Seat::Leaving;
        }
    }

    /// How many workers there are that stay.
    pub(super) fn staying(&self) -> usize {
        self.seats.iter().filter(|&&seat| seat == Seat::Taken).count()
    }

    /// The seats in which workers are to be started, so that `wanted` stay: one a place, where one is free.
    pub(super) fn to_start(&self, wanted: usize) -> Vec<usize> {
        let missing = wanted.saturating_sub(self.staying());
        let of_place = |place: usize| (place..self.seats.len()).step_by(self.places);
        let free = |place: usize| {
            let has_none = of_place(place).all(|seat| self.seats[seat] != Seat::Taken);
            has_none.then(|| of_place(place).find(|&seat| self.seats[seat] == Seat::Empty)).flatten()
        };
        (0..self.places).filter_map(free).take(missing).collect()
    }
}

/// How many workers a pool may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) min: usize,
    pub(super) most: usize,
    /// After how long without work for it a worker above `min` is ended; `None`: it stays.
    pub(super) idle_after: Option<Duration>,
}

impl Size {
    /// How many workers there are to be for this number of tasks that have not ended.
    pub(super) fn wanted(&self, outstanding: usize) -> usize {
        outstanding.clamp(self.min, self.most)
    }

    /// With how many tasks that have not ended the pool's thread is to look whether more workers are wanted.
    pub(super) fn calls_above(&self, staying: usize) -> usize {
        if staying < self.most { staying } else { usize::MAX }
    }

    /// How many workers have had nothing to do, where there were never more than `peak` tasks at a time.
    pub(super) fn surplus(&self, staying: usize, peak: usize) -> usize {
        staying.saturating_sub(self.wanted(peak))
    }

    /// Whether workers may be ended for want of work at all.
    pub(super) fn may_shrink(&self, staying: usize) -> Option<Duration> {
        self.idle_after.filter(|_| staying > self.min)
    }
}

/// When a worker leaves by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Term {
    /// After this number of tasks and items.
    pub(super) tasks: Option<u64>,
    /// With more memory of its own than this number of bytes.
    pub(super) bytes: Option<u64>,
}

/// Up to this number of tasks a term is kept exactly.
const EXACT: u64 = 10;

impl Term {
    /// Whether workers are replaced as they work.
    pub(super) fn has_end(&self) -> bool {
        self.tasks.is_some() || self.bytes.is_some()
    }

    /// The term of one worker: up to a tenth more or less tasks, by a random number, so that workers that began together do not all leave
    /// together.
    pub(super) fn for_one(self, random: u64) -> Self {
        let vary = |tasks: u64| {
            let spread = if tasks > EXACT { tasks / 10 } else { 0 };
            tasks - spread + random % (2 * spread + 1)
        };
        Self { tasks: self.tasks.map(vary), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_one_worker_that_stays_and_a_successor_is_started_before_the_one_that_leaves_has_ended()
    {
        let mut seats = Seats::new(2, 4);
        assert_eq!(seats.to_start(2), [0, 1]);
        seats.set(0, Seat::Taken);
        assert_eq!(seats.to_start(2), [1]);
        seats.set(1, Seat::Taken);
        assert!(seats.to_start(2).is_empty());
        seats.note_leaving(1);
        assert_eq!((seats.staying(), seats.to_start(2)), (1, vec![3]));
        seats.set(3, Seat::Taken);
        assert!(seats.to_start(2).is_empty());
        // The successor leaves too, and the first has still not ended: no seat is free.
        seats.note_leaving(3);
        assert!(seats.to_start(2).is_empty());
        seats.set(1, Seat::Empty);
        assert_eq!(seats.to_start(2), [1]);
        // One that has ended does not leave any more.
        seats.note_leaving(1);
        assert_eq!(seats.to_start(2), [1]);
    }

    #[test]
    fn no_more_are_started_than_are_wanted() {
        let mut seats = Seats::new(4, 4);
        assert_eq!(seats.to_start(0), [0_usize; 0]);
        assert_eq!(seats.to_start(2), [0, 1]);
        seats.set(2, Seat::Taken);
        assert_eq!(seats.to_start(2), [0]);
        seats.note_leaving(2);
        assert_eq!(seats.to_start(4), [0, 1, 3]);
    }

    #[test]
    fn size_follows_the_tasks_between_its_bounds() {
        let size = Size { min: 1, most: 4, idle_after: Some(Duration::from_secs(1)) };
        assert_eq!([0, 1, 3, 9].map(|tasks| size.wanted(tasks)), [1, 1, 3, 4]);
        assert_eq!([1, 3, 4].map(|staying| size.calls_above(staying)), [1, 3, usize::MAX]);
        assert_eq!(
            [(4, 0), (4, 3), (4, 9), (1, 0)].map(|(staying, peak)| size.surplus(staying, peak)),
            [3, 1, 0, 0]
        );
        assert_eq!((size.may_shrink(1), size.may_shrink(2)), (None, size.idle_after));
        let none = Size { min: 0, ..size };
        assert_eq!((none.wanted(0), none.surplus(1, 0)), (0, 1));
    }

    #[test]
    fn terms_of_workers_differ_by_a_tenth_but_short_ones_are_exact() {
        let term = |tasks| Term { tasks: Some(tasks), bytes: Some(7) };
        for random in 0..10_000 {
            assert_eq!(term(1).for_one(random), term(1));
            assert_eq!(term(EXACT).for_one(random), term(EXACT));
            let tasks = term(1000).for_one(random).tasks.unwrap();
            assert!((900..=1100).contains(&tasks), "{tasks}");
        }
        let found: std::collections::BTreeSet<_> =
            (0..10_000).map(|random| term(1000).for_one(random).tasks).collect();
        assert_eq!(found.len(), 201);
        assert!(!Term::default().has_end() && term(1).has_end());
    }
}
