//! A function with points in it, for the tests of faults.

#![allow(dead_code, clippy::allow_attributes, reason = "every test binary uses its own part of this")]

use phalanx::fault::{self, Faults};
use phalanx::{Error, Options, StartMethod, start_processes};

use crate::common::{self, watched};

/// Three steps, each with a point.
pub(crate) fn steps(_rank: usize, _: ()) -> anyhow::Result<u64> {
    for _ in 0..3 {
        fault::point!("test.step");
        fault::point!("test.save", |injected| return Err(injected.into()));
    }
    Ok(3)
}

pub(crate) fn run(method: StartMethod) -> impl Fn(&Faults) -> Result<Vec<u64>, Error> {
    move |faults| start_processes(steps, (), Options::new(3).start_method(method).faults(faults))?.join()
}

/// As [`watched`], with a fork server, which stays.
pub(crate) fn served(test: impl FnOnce()) {
    let nothing = |_, ()| anyhow::Ok(());
    common::alone(|| start_processes(nothing, (), common::served(1)).unwrap().join().unwrap());
    watched(test);
}
