//! Each limit that a call can meet is named in its error, with its numbers. A case is a launcher in a process of its own,
//! which limits itself, does something, and hands in what it was told.

mod common;

use std::io;

use common::{by, file_of, skipped, watched};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::sync::{Barrier, Event, Lock, Semaphore};
use phalanx::{
    Descriptor, Error, Options, Queue, SharingStrategy, StartMethod, Tensor, pipe, start_processes,
};

phalanx::auto_init!();

/// Limits this process.
type Limit = fn() -> anyhow::Result<()>;
/// Does something, and hands in the error's text.
type Operation = fn(StartMethod) -> Option<String>;

struct Case {
    name: &'static str,
    limit: Limit,
    operation: Operation,
    /// All of them stand in the error; none: there is none.
    words: &'static [&'static str],
}

/// What a limit does to an operation under each start method, or to one that has nothing to do with it.
const fn case(
    name: &'static str,
    limit: Limit,
    operation: Operation,
    words: &'static [&'static str],
) -> Case {
    Case { name, limit, operation, words }
}

fn told<T>(result: Result<T, impl std::fmt::Display>) -> Option<String> {
    result.err().map(|error| error.to_string())
}

fn set(resource: Resource, limit: u64) -> anyhow::Result<()> {
    Ok(setrlimit(resource, limit, limit)?)
}

/// No more descriptors than there are.
fn descriptors() -> anyhow::Result<()> {
    let used = common::descriptors().last().map_or(0, |(number, _)| *number as u64 + 1);
    // Those below are used up.
    let mut kept = Vec::new();
    set(Resource::RLIMIT_NOFILE, used)?;
    while let Ok(file) = std::fs::File::open("/dev/null") {
        kept.push(file);
    }
    std::mem::forget(kept);
    Ok(())
}

/// 100 MB more of address space than is in use.
fn address_space() -> anyhow::Result<()> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').next().unwrap_or_default().parse()?;
    set(Resource::RLIMIT_AS, pages * 4096 + 100_000_000)
}

/// Of the soft limit alone, so that the report finds room when it is over.
fn file_size_of(limit: u64) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    Ok(setrlimit(Resource::RLIMIT_FSIZE, limit, hard)?)
}

fn file_size() -> anyhow::Result<()> {
    file_size_of(4096)
}

/// Enough for a report slot, but not for a large report.
fn file_size_of_a_report() -> anyhow::Result<()> {
    file_size_of(100_000)
}

fn stack() -> anyhow::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_STACK, 1 << 20, 8 << 20)?)
}

/// Of a user who is not root: one process, which is there already.
#[expect(unsafe_code, reason = "setuid and prctl of the whole process")]
fn processes() -> anyhow::Result<()> {
    set(Resource::RLIMIT_NPROC, 1)?;
    // SAFETY: takes integers.
    let done = unsafe { libc::setgid(65533) } == 0 && unsafe { libc::setuid(65533) } == 0;
    anyhow::ensure!(done, "setuid: {}", io::Error::last_os_error());
    // Else /proc/self is root's.
    // SAFETY: takes integers.
    anyhow::ensure!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) } == 0);
    Ok(())
}

/// As many mappings as there can be. Neighbours of the same protection would be one.
#[expect(unsafe_code, reason = "mmap is unsafe")]
fn mappings() -> anyhow::Result<()> {
    let page = std::num::NonZeroUsize::new(4096).unwrap();
    for protection in [ProtFlags::PROT_NONE, ProtFlags::PROT_READ].iter().cycle() {
        // SAFETY: a new map, which nobody uses.
        if unsafe { mmap_anonymous(None, page, *protection, MapFlags::MAP_PRIVATE) }.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn nothing_of_the_rest() -> anyhow::Result<()> {
    set(Resource::RLIMIT_MEMLOCK, 0)?;
    set(Resource::RLIMIT_MSGQUEUE, 0)?;
    set(Resource::RLIMIT_SIGPENDING, 0)?;
    set(Resource::RLIMIT_CORE, 0)
}

/// Named memory in a file system with this option.
fn named_in(option: &str) -> anyhow::Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some(option))?;
    phalanx::shm::set_sharing_directory("/mnt")?;
    phalanx::set_sharing_strategy(SharingStrategy::FileSystem);
    Ok(())
}

fn small_file_system() -> anyhow::Result<()> {
    named_in("size=1m")
}

fn few_names() -> anyhow::Result<()> {
    named_in("nr_inodes=5")
}

/// As in a chroot into which nobody has mounted it.
fn no_proc() -> anyhow::Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    Ok(umount2("/proc", MntFlags::MNT_DETACH)?)
}

fn start(method: StartMethod) -> Option<String> {
    told(
        start_processes(|_, ()| anyhow::Ok(()), (), by(method, 4))
            .and_then(|context| context.join().map(drop)),
    )
}

fn start_with_large_variable(method: StartMethod) -> Option<String> {
    let options = by(method, 1).env("PHALANX_TEST_LARGE", "x".repeat(200_000));
    told(start_processes(|_, ()| anyhow::Ok(()), (), options).and_then(|context| context.join().map(drop)))
}

fn start_with_many_variables(method: StartMethod) -> Option<String> {
    let variable =
        |options: Options, number| options.env(format!("PHALANX_TEST_{number}"), "x".repeat(10_000));
    let options = (0..50).fold(by(method, 1), variable);
    told(start_processes(|_, ()| anyhow::Ok(()), (), options).and_then(|context| context.join().map(drop)))
}

/// A result of a megabyte.
fn large_result(method: StartMethod) -> Option<String> {
    told(
        start_processes(|_, ()| anyhow::Ok(vec![1_u8; 1 << 20]), (), by(method, 1))
            .and_then(|context| context.join()),
    )
}

fn small_tensor(_: StartMethod) -> Option<String> {
    told(Tensor::<u8>::zeros(&[100]))
}

fn large_tensor(_: StartMethod) -> Option<String> {
    told(Tensor::<u8>::zeros(&[400_000_000]))
}

fn middling_tensor(_: StartMethod) -> Option<String> {
    told(Tensor::<u8>::zeros(&[600_000]))
}

fn queue(_: StartMethod) -> Option<String> {
    told(Queue::<u8>::bounded(10))
}

fn queue_of_large_values(_: StartMethod) -> Option<String> {
    let queue = Queue::<Vec<u8>>::bounded(2).unwrap();
    told(queue.put(vec![1; 1 << 20]))
}

fn pipes(_: StartMethod) -> Option<String> {
    told(pipe::<u8, u8>())
}

fn locks(_: StartMethod) -> Option<String> {
    told(Lock::new(0_u64))
}

fn all_kinds(method: StartMethod) -> Option<String> {
    let one = told(Semaphore::new(2)).or_else(|| told(Event::new())).or_else(|| told(Barrier::new(2)));
    let other =
        one.or_else(|| small_tensor(method)).or_else(|| large_result(method)).or_else(|| pipes(method));
    other.or_else(|| queue_of_large_values(method)).or_else(|| locks(method)).or_else(|| start(method))
}

/// A worker that lacks descriptors for what it is sent.
fn descriptors_in_worker(method: StartMethod) -> Option<String> {
    let work = |_, ()| -> anyhow::Result<()> {
        descriptors()?;
        Tensor::<u8>::zeros(&[600_000])?;
        Ok(())
    };
    told(start_processes(work, (), by(method, 1)).and_then(|context| context.join().map(drop)))
}

/// The launcher runs out of descriptors between starts, by files for its workers.
fn files_for_workers(method: StartMethod) -> Option<String> {
    let files: Vec<_> = (0..20).map(|_| Descriptor::from(file_of("x"))).collect();
    let _ = set(Resource::RLIMIT_NOFILE, common::descriptors().len() as u64 + 4);
    told(start_processes(|_, _: Vec<Descriptor>| anyhow::Ok(()), files, by(method, 1)).map(drop))
}

const NOFILE: &[&str] = &["Too many open files", "RLIMIT_NOFILE is "];
const FSIZE: &[&str] = &["File too large", "RLIMIT_FSIZE is 4096 bytes"];
const AS: &[&str] = &["cannot get 381.5 MiB (400000000 bytes)", "RLIMIT_AS is ", "(ulimit -v), of which "];

/// Those that have to do with how workers are started.
const STARTS: &[Case] = &[
    case("start without descriptors", descriptors, start, NOFILE),
    case("descriptors for workers", || Ok(()), files_for_workers, NOFILE),
    case("tensor in a worker without descriptors", || Ok(()), descriptors_in_worker, NOFILE),
    case("start without room for a file", file_size, start, FSIZE),
    case(
        "large result without room for it",
        file_size_of_a_report,
        large_result,
        &["File too large", "RLIMIT_FSIZE is 100000 bytes"],
    ),
    case(
        "start without processes",
        processes,
        start,
        &["Resource temporarily unavailable", "RLIMIT_NPROC is 1 of at most 1", "kernel.pid_max is "],
    ),
    case(
        "start without room for names",
        few_names,
        start,
        &["No space left on device", "/mnt", "of 5 names"],
    ),
    case("start without /proc", no_proc, start, &["No such file or directory", "/proc/self/"]),
    case("start with address space", address_space, start, &[]),
    case("the rest limits nothing", nothing_of_the_rest, all_kinds, &[]),
];

/// Those that have nothing to do with it.
const OTHERS: &[Case] = &[
    case("small tensor without descriptors", descriptors, small_tensor, NOFILE),
    case("tensor without descriptors", descriptors, middling_tensor, NOFILE),
    case("queue without descriptors", descriptors, queue, NOFILE),
    case("pipe without descriptors", descriptors, pipes, NOFILE),
    case("lock without descriptors", descriptors, locks, NOFILE),
    case("small tensor fits a small file", file_size, small_tensor, &[]),
    case("tensor without room for a file", file_size, middling_tensor, FSIZE),
    case("queue without room for a file", file_size, queue, FSIZE),
    case(
        "large value without room for a file",
        file_size_of_a_report,
        queue_of_large_values,
        &["RLIMIT_FSIZE is 100000 bytes"],
    ),
    case("lock fits a small file", file_size, locks, &[]),
    case("pipe needs no file", file_size, pipes, &[]),
    case("tensor without address space", address_space, large_tensor, AS),
    case(
        "tensor without mappings",
        mappings,
        middling_tensor,
        &["Cannot allocate memory", "vm.max_map_count is ", " mappings"],
    ),
    case(
        "named tensor in a small file system",
        small_file_system,
        large_tensor,
        &["cannot get 381.5 MiB (400000000 bytes)", "in /mnt"],
    ),
    case(
        "named tensor without names",
        few_names,
        |_| {
            (0..20)
                .map(|_| Tensor::<u8>::zeros(&[600_000]))
                .collect::<Result<Vec<_>, _>>()
                .err()
                .map(|error| error.to_string())
        },
        &["/mnt", "names"],
    ),
];

/// By exec only.
const BY_EXEC: &[Case] = &[
    case(
        "large variable",
        || Ok(()),
        start_with_large_variable,
        &["Argument list too long", "PHALANX_TEST_LARGE has 200020 bytes", "131072"],
    ),
    case(
        "many variables",
        stack,
        start_with_many_variables,
        &["Argument list too long", "RLIMIT_STACK, which is 1048576 of at most 8388608"],
    ),
];

const TABLES: [&[Case]; 3] = [STARTS, OTHERS, BY_EXEC];

/// Runs all cases of a table, and says of which the error is not what it should be.
fn run(table: usize, method: StartMethod) {
    let launch =
        |_, (table, number, method): (usize, usize, StartMethod)| -> anyhow::Result<Option<String>> {
            let case = &TABLES[table][number];
            (case.limit)()?;
            let told = (case.operation)(method);
            let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
            file_size_of(hard)?;
            Ok(told)
        };
    let mut wrong = Vec::new();
    for (number, Case { name, words, .. }) in TABLES[table].iter().enumerate() {
        let told = match start_processes(launch, (table, number, method), Options::new(1)).unwrap().join() {
            Ok(mut told) => told.remove(0),
            Err(Error::ProcessRaised(exception)) if exception.to_string().contains("EPERM") => {
                skipped(&format!("{name}: {:?}", exception.chain()));
                continue;
            }
            Err(error) => {
                wrong.push(format!("{name} by {method:?}: the launcher itself: {error}"));
                continue;
            }
        };
        let right = match &told {
            None => words.is_empty(),
            Some(told) => !words.is_empty() && words.iter().all(|word| told.contains(word)),
        };
        if !right {
            wrong.push(format!("{name} by {method:?}: {told:?} has not all of {words:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn start_by_spawn_names_the_limit_that_it_meets() {
    watched(|| run(0, StartMethod::Spawn));
}

#[test]
fn start_by_fork_names_the_limit_that_it_meets() {
    watched(|| run(0, StartMethod::Fork));
}

#[test]
fn start_by_the_fork_server_names_the_limit_that_it_meets() {
    watched(|| run(0, StartMethod::ForkServer));
}

#[test]
fn other_calls_name_the_limit_that_they_meet() {
    watched(|| run(1, StartMethod::Spawn));
}

#[test]
fn what_is_too_large_for_exec_is_named() {
    watched(|| run(2, StartMethod::Spawn));
}
