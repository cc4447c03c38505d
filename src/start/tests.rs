//! What is made for workers before they are started, and a request to fork as both sides see it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use super::attributes;
use super::fork_batch::{self, ForkBatch};
use super::fork_request::OpenRequest;
use super::plan::{Failure, Jobs, Plan};
use super::{StartMethod, make_room};
use crate::error::Error;
use crate::memory::strategy::Choice;
use crate::sys::signal::Signal;
use crate::wire::codec;
use crate::wire::job::JobFile;
use crate::wire::message::{Job, Shared};
use crate::wire::result_channel::ResultChannel;
use crate::wire::service::Trouble;

const NPROCS: usize = 3;

fn plan(jobs: usize, death_signal: Option<Signal>) -> Plan {
    let result_channel = ResultChannel::new().unwrap();
    let job = Job {
        shared: Some(Shared {
            sharing: Choice::of_this_process(),
            process_dir: None,
            result_channel: result_channel.number(),
            guards: None,
            stop: 0,
            aborts: false,
            roster: 0,
            faults: None,
        }),
        ..Job::default()
    };
    let files = (0..jobs).map(|_| JobFile::new(&job, codec::encode(&()).unwrap()).unwrap());
    Plan {
        method: StartMethod::ForkServer,
        nprocs: NPROCS,
        jobs: Jobs::new(files.collect()),
        result_channel,
        guards: None,
        process_dir: None,
        environment: Vec::new(),
        rank_environments: Vec::new(),
        death_signal,
        piped: [false, true],
    }
}

/// Which file a descriptor of this process is of.
//
// Numbers differ between launcher and server, device and inode do not: by these a descriptor in the wrong place is found.
fn file_of(number: RawFd) -> (u64, u64) {
    let file = fs::metadata(format!("/proc/self/fd/{number}")).unwrap();
    (file.dev(), file.ino())
}

/// Makes the request of the last two ranks, and gives it to `look` as it arrives in the server, with the plan.
fn in_the_server(
    jobs: usize,
    look: impl FnOnce(&Plan, Result<OpenRequest<'_>, Trouble>, &[[RawFd; 3]]),
    lost: usize,
) {
    let plan = plan(jobs, Some(Signal::KILL));
    let (ledger, before) = fork_batch::prepare(NPROCS).unwrap();
    let attributes = attributes::of_caller(&[]).unwrap();
    let batch =
        ForkBatch { plan: &plan, ranks: 1..3, attributes: &attributes, before: &before, ledger: &ledger };
    let workers = [1, 2].map(|rank| plan.prepare(rank).unwrap());
    let (request, descriptors) = batch.request(&workers);
    // Copies, as SCM_RIGHTS makes them: in the server each has another number. Those that are lost are the last ones, as with
    // MSG_CTRUNC.
    let arrived = descriptors.iter().map(|fd| fd.try_clone_to_owned().unwrap());
    let arrived: Vec<OwnedFd> = arrived.take(descriptors.len() - lost).collect();
    let sent = workers.each_ref().map(|worker| {
        let end = worker.workers_end.as_ref().unwrap();
        let stderr = worker.writers[1].as_ref().unwrap();
        [worker.slot.as_fd(), end.as_fd(), stderr.as_fd()].map(|fd| fd.as_raw_fd())
    });
    look(&plan, OpenRequest::of(&request, &arrived), &sent);
}

#[test]
fn server_finds_each_descriptor_of_a_request_in_its_place() {
    for jobs in [1, NPROCS] {
        let look = |plan: &Plan, open: Result<OpenRequest<'_>, Trouble>, sent: &[[RawFd; 3]]| {
            let open = open.unwrap();
            assert_eq!((open.slots.len(), open.death_signal()), (2, Some(Signal::KILL)));
            for (number, [slot, end, stderr]) in sent.iter().enumerate() {
                let marker = open.marker(number, open.slots[number].as_raw_fd(), 7);
                assert_eq!((marker.rank, marker.launcher), (1 + number, 7));
                assert_eq!(file_of(marker.report), file_of(*slot));
                assert_eq!(file_of(marker.lifeline.unwrap()), file_of(*end));
                let [no_stdout, own_stderr] = open.served(number, 1).output;
                assert!(no_stdout.is_none());
                assert_eq!(file_of(own_stderr.unwrap().as_raw_fd()), file_of(*stderr));
                let job = plan.jobs.of(1 + number).as_fd().as_raw_fd();
                assert_eq!(file_of(marker.job), file_of(job));
            }
            let channel = plan.result_channel.number();
            // The job names the channel by its number in the launcher, and a worker of the server has to find it by the server's.
            let here = open.served(0, 1).numbers[&channel];
            assert!(here != channel && file_of(here) == file_of(channel));
        };
        in_the_server(jobs, look, 0);
    }
}

#[test]
fn request_of_which_a_descriptor_was_lost_is_refused() {
    let look = |_: &Plan, open: Result<OpenRequest<'_>, Trouble>, _: &[[RawFd; 3]]| {
        let refused = open.unwrap_err();
        let Trouble::Malformed(text) = refused else { panic!("{refused:?}") };
        // Four before the jobs, one job, the channel, two slots, two lifelines and two pipes.
        assert_eq!(text, "11 descriptors came with a request, not 12");
    };
    in_the_server(1, look, 1);
}

#[test]
fn worker_inherits_what_its_marker_speaks_of() {
    let plan = plan(NPROCS, Some(Signal::KILL));
    let worker = plan.prepare(2).unwrap();
    let (marker, inherited) = (plan.marker(&worker), plan.inherited(&worker));
    let inherited: Vec<_> = inherited.map(|fd| fd.as_raw_fd()).collect();
    let spoken_of = [marker.job, marker.report, marker.lifeline.unwrap(), plan.result_channel.number()];
    assert!(spoken_of.iter().all(|number| inherited.contains(number)), "{spoken_of:?} {inherited:?}");
    assert_eq!((marker.rank, marker.job), (2, plan.jobs.of(2).as_fd().as_raw_fd()));
}

#[test]
fn only_workers_that_are_to_be_killed_with_the_launcher_have_a_lifeline() {
    // A lifeline kills. A worker that asked for SIGTERM, or for nothing, would lose its chance to end in order.
    for (signal, has_one) in [(Some(Signal::KILL), true), (Some(Signal::TERM), false), (None, false)] {
        let worker = plan(1, signal).prepare(0).unwrap();
        assert_eq!((worker.lifeline.is_some(), worker.workers_end.is_some()), (has_one, has_one));
    }
}

#[test]
fn failure_names_the_rank_and_the_call() {
    let refused = Failure::of("trying (try)")(io::Error::from_raw_os_error(1));
    let text = refused.for_rank(4, 7).to_string();
    assert!(text.contains('4') && text.contains('7') && text.contains("trying (try)"), "{text}");
    assert!(matches!(Failure::Threads(3).for_rank(0, 1), Error::ForkWithThreads { threads: 3 }));
}

#[test]
fn room_for_more_workers_than_there_can_be_is_no_overflow() {
    make_room(usize::MAX, 2);
}
