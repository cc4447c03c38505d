//! The marker: the environment variable by which a process knows that it is a worker.

use std::fmt;
use std::os::fd::RawFd;
use std::str::FromStr;

use super::names::PROTOCOL;
use crate::sys::signal::Signal;

/// What a worker must know before it can read its job. As text it is the protocol's version and these fields, as decimal numbers with a
/// space between them; 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) rank: usize,
    /// The pid of the process that must be the worker's parent: with another parent the launcher, or its fork server, is dead.
    pub(crate) launcher: u32,
    /// The inherited memfd of the job.
    pub(crate) job: RawFd,
    /// The inherited memfd of the report slot.
    pub(crate) report: RawFd,
    /// The signal that the kernel is to send when the parent dies (prctl(2), PR_SET_PDEATHSIG).
    pub(crate) death_signal: Option<Signal>,
    /// The number of this worker's directory in the launcher's directory of named memory, from 1 on.
    pub(crate) worker_dir: Option<u64>,
    /// The worker's end of the lifeline, if the worker is to be killed when its launcher ends.
    pub(crate) lifeline: Option<RawFd>,
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, launcher, job, report, death_signal, worker_dir, lifeline } = self;
        let (death, worker_dir) = (death_signal.map_or(0, Signal::number), worker_dir.unwrap_or(0));
        // 0 stands for none: no lifeline is stdin.
        let lifeline = lifeline.unwrap_or(0);
        write!(f, "{PROTOCOL} {rank} {launcher} {job} {report} {death} {worker_dir} {lifeline}")
    }
}

impl FromStr for Marker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no marker of protocol {PROTOCOL}");
        let numbers: Vec<u64> =
            text.split(' ').map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        let [version, rank, launcher, job, report, death, worker_dir, lifeline] = numbers[..] else {
            return Err(bad());
        };
        if version != u64::from(PROTOCOL) {
            return Err(bad());
        }
        let small = |number: u64| i32::try_from(number).map_err(|_| bad());
        Ok(Self {
            rank: usize::try_from(rank).map_err(|_| bad())?,
            launcher: u32::try_from(launcher).map_err(|_| bad())?,
            job: small(job)?,
            report: small(report)?,
            death_signal: Signal::new(small(death)?),
            worker_dir: Some(worker_dir).filter(|&worker_dir| worker_dir != 0),
            lifeline: Some(small(lifeline)?).filter(|&lifeline| lifeline != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marker_round_trips() {
        for (death_signal, worker_dir, lifeline) in
            [(None, Some(9), None), (Some(Signal::KILL), None, Some(7))]
        {
            let marker =
                Marker { rank: 3, launcher: 77, job: 5, report: 6, death_signal, worker_dir, lifeline };
            assert_eq!(marker.to_string().parse(), Ok(marker));
        }
    }

    #[test]
    fn marker_of_other_version_or_garbage_is_an_error() {
        for text in [
            "",
            "2",
            "2 2 3 4 5 0",
            "1 0 1 3 4 9 0 0",
            "2 0 1 3 4 9 9 9 9",
            "2 0 1 -3 4 9 0 0",
            "2 0 1 99999999999 4 9 0 0",
        ] {
            assert!(text.parse::<Marker>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hostile_marker_never_panics_and_a_good_one_round_trips(text: String, numbers in proptest::array::uniform8(0_u64..1 << 33)) {
            let _ = text.parse::<Marker>();
            let text = numbers.map(|number| number.to_string()).join(" ");
            if let Ok(marker) = text.parse::<Marker>() {
                proptest::prop_assert_eq!(marker.to_string().parse(), Ok(marker));
            }
        }
    }
}
