//! What a failure looks like: messages, tracebacks, causes, and what survives a SIGKILL.

#![expect(unsafe_code, reason = "these workers hurt themselves")]

mod common;

use std::fmt;
use std::io;

use anyhow::Context;
use common::{await_that, kill_self, wait_for_ever, watched};
use phalanx::{
    Cause, Error, Options, ProcessExitedException, ProcessRaisedException, Status, Tensor, spawn,
    start_processes,
};

phalanx::auto_init!();

fn raised_by(f: impl Fn(usize, ()) -> anyhow::Result<()> + Copy + Send + 'static) -> ProcessRaisedException {
    match spawn(f, (), 1).unwrap_err() {
        Error::ProcessRaised(exception) => *exception,
        other => panic!("{other}"),
    }
}

fn exited_by(f: impl Fn(usize, ()) -> anyhow::Result<()> + Copy + Send + 'static) -> ProcessExitedException {
    match spawn(f, (), 1).unwrap_err() {
        Error::ProcessExited(exception) => *exception,
        other => panic!("{other}"),
    }
}

fn read_config(_: usize, _: ()) -> anyhow::Result<()> {
    let missing = Err::<(), _>(io::Error::other("disk on fire")).context("cannot read weights.bin");
    missing.context("cannot begin epoch 3")
}

#[test]
fn error_chain_arrives_whole_in_torchs_words() {
    watched(|| {
        let exception = raised_by(read_config);
        assert_eq!(exception.chain(), ["cannot begin epoch 3", "cannot read weights.bin", "disk on fire"]);
        assert!(!exception.error().is_panic());
        let text = exception.to_string();
        let start = "-- Process 0 terminated with the following error:\ncannot begin epoch 3\n\nCaused by:\n    0: cannot read weights.bin\n    1: disk on fire\n";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("s after its start"), "{text}");
        assert_eq!(format!("{exception:?}"), text, "what unwrap shows is the same story");
    });
}

/// The frames that this file's own functions have, and whether each has a file and a line.
fn own_frames(traceback: &phalanx::Traceback) -> Vec<(String, u32)> {
    let own = traceback.frames().iter().filter(|frame| frame.function.starts_with("failure::"));
    own.map(|frame| {
        assert!(frame.file.as_ref().is_some_and(|file| file.ends_with("tests/failure.rs")), "{frame:?}");
        (frame.function.clone(), frame.line.unwrap())
    })
    .collect()
}

#[inline(never)]
fn deep_in_the_code(x: Option<u32>) -> u32 {
    std::hint::black_box(x).unwrap()
}

#[inline(never)]
fn called_by(x: Option<u32>) -> u32 {
    deep_in_the_code(x) + 1
}

#[test]
fn panic_has_message_location_and_a_trimmed_traceback() {
    watched(|| {
        let exception = raised_by(|_, ()| {
            called_by(None);
            Ok(())
        });
        assert!(exception.error().is_panic());
        assert_eq!(exception.chain(), ["called `Option::unwrap()` on a `None` value"]);
        assert!(exception.panic_location().unwrap().contains("tests/failure.rs:"));
        let frames = own_frames(exception.traceback());
        let names: Vec<_> = frames.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..2], ["failure::deep_in_the_code", "failure::called_by"]);
        assert_eq!(
            exception.traceback().frames()[0].function,
            names[0],
            "nothing of the machinery comes first"
        );
        let all = exception.traceback().frames();
        assert!(
            all.iter().all(|frame| !frame.function.contains("phalanx::") && frame.line.is_some()),
            "{all:#?}"
        );
    });
}

#[test]
fn returned_error_has_a_traceback_though_rust_backtrace_is_unset() {
    // In a worker, whose environment is its own, so that the test run's variables do not help.
    #[expect(clippy::disallowed_methods, reason = "in a process of its own")]
    fn outer(_: usize, _: ()) -> anyhow::Result<String> {
        // SAFETY: this worker has a single thread.
        unsafe { std::env::remove_var("RUST_BACKTRACE") };
        // SAFETY: as above.
        unsafe { std::env::remove_var("RUST_LIB_BACKTRACE") };
        Ok(own_frames(raised_by(read_config).traceback())[0].0.clone())
    }
    watched(|| assert_eq!(spawn(outer, (), 1).unwrap(), ["failure::read_config"]));
}

#[test]
fn message_of_five_megabytes_arrives_whole() {
    watched(|| {
        let exception = raised_by(|_, ()| anyhow::bail!("{}end", "x".repeat(5_000_000)));
        assert_eq!((exception.chain()[0].len(), exception.chain()[0].ends_with("xend")), (5_000_003, true));
        let exception = raised_by(|_, ()| panic!("{}end", "x".repeat(5_000_000)));
        assert_eq!(exception.chain()[0].len(), 5_000_003);
    });
}

#[test]
fn panics_that_bypass_the_hook_or_have_no_text_are_told() {
    watched(|| {
        let exception = raised_by(|_, ()| std::panic::resume_unwind(Box::new("resumed".to_owned())));
        assert_eq!((exception.chain(), exception.panic_location()), (&["resumed".to_owned()][..], None));
        let exception = raised_by(|_, ()| std::panic::panic_any(5_u8));
        assert_eq!(exception.chain(), ["Box<dyn Any>"]);
        assert!(exception.panic_location().is_some());
    });
}

#[test]
fn caught_panic_is_no_failure_and_does_not_lend_its_place() {
    watched(|| {
        let work = |_, ()| anyhow::Ok(std::panic::catch_unwind(|| panic!("caught")).is_err());
        assert_eq!(spawn(work, (), 1).unwrap(), [true]);
        let exception = raised_by(|_, ()| {
            let _ = std::panic::catch_unwind(|| panic!("caught"));
            std::panic::resume_unwind(Box::new("another"))
        });
        assert_eq!((exception.chain(), exception.panic_location()), (&["another".to_owned()][..], None));
    });
}

#[test]
fn panic_while_panicking_keeps_its_words_and_a_traceback() {
    struct Worse;
    impl Drop for Worse {
        fn drop(&mut self) {
            panic!("second");
        }
    }
    watched(|| {
        let exception = exited_by(|_, ()| {
            let _worse = Worse;
            panic!("first");
        });
        assert_eq!(exception.signal_name().as_deref(), Some("SIGABRT"));
        let text = exception.to_string();
        assert!(text.contains("its last words: panicked at") && text.contains("second"), "{text}");
        assert!(text.contains("first"), "the first panic is not lost: {text}");
    });
}

#[test]
fn exits_before_returning_are_failures_whatever_the_code() {
    watched(|| {
        for code in [0, 3, 255] {
            let work = |_, code: i32| -> anyhow::Result<()> {
                #[expect(clippy::exit, clippy::disallowed_methods, reason = "this is what is tested")]
                std::process::exit(code)
            };
            let Error::ProcessExited(exception) = spawn(work, code, 1).unwrap_err() else { panic!() };
            assert_eq!(
                (exception.exit_code(), exception.cause()),
                (Some(code), Some(Cause::ExitedBeforeReturning))
            );
            assert!(
                exception.to_string().starts_with(&format!("process 0 terminated with exit code {code}\n"))
            );
            assert!(exception.to_string().contains(" failed at "), "exit(3) records its moment: {exception}");
        }
        let exception = exited_by(|_, ()| {
            // SAFETY: ends the process.
            unsafe { libc::_exit(9) }
        });
        assert_eq!((exception.exit_code(), exception.cause()), (Some(9), Some(Cause::ExitedBeforeReturning)));
        assert!(exception.to_string().contains(" was seen dead at "), "_exit(2) cannot: {exception}");
    });
}

#[test]
fn exit_from_another_thread_is_a_failure() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            std::thread::spawn(|| {
                #[expect(clippy::exit, clippy::disallowed_methods, reason = "this is what is tested")]
                std::process::exit(4)
            });
            wait_for_ever()
        });
        assert_eq!((exception.exit_code(), exception.cause()), (Some(4), Some(Cause::ExitedBeforeReturning)));
    });
}

#[test]
fn failure_while_exiting_is_told_though_the_function_had_returned() {
    extern "C" fn fail_late() {
        kill_self();
    }
    watched(|| {
        let exception = exited_by(|_, ()| {
            // SAFETY: registers a function of this program.
            unsafe { libc::atexit(fail_late) };
            Ok(())
        });
        assert_eq!((exception.exit_code(), exception.cause()), (Some(-9), Some(Cause::FailedAfterReturning)));
    });
}

#[test]
fn signals_are_named_and_numbers_without_a_name_are_numbers() {
    watched(|| {
        let by = |signal: i32| {
            let work = |_, signal: i32| -> anyhow::Result<()> {
                // SAFETY: raises a signal in this process.
                unsafe { libc::raise(signal) };
                wait_for_ever()
            };
            let Error::ProcessExited(exception) = spawn(work, signal, 1).unwrap_err() else { panic!() };
            assert_eq!(exception.exit_code(), Some(-signal));
            exception
        };
        let text = by(libc::SIGKILL).to_string();
        assert!(text.starts_with("process 0 terminated with signal SIGKILL\nrank 0 (pid "), "{text}");
        assert_eq!(by(40).signal_name().as_deref(), Some("signal 40"));
        assert!(by(40).to_string().starts_with("process 0 terminated with signal 40\n"));
        let exception = by(libc::SIGABRT);
        assert_eq!(exception.signal_name().as_deref(), Some("SIGABRT"));
        assert!(exception.traceback().is_some_and(|traceback| !traceback.frames().is_empty()));
    });
}

#[inline(never)]
fn write_to(address: usize) {
    // SAFETY: none: this is the mistake that is tested.
    unsafe { (address as *mut u32).write_volatile(1) }
}

#[test]
fn segmentation_fault_has_a_traceback_and_keeps_its_status() {
    watched(|| {
        for address in [0, 8, 0x10_0000] {
            let work = |_, address: usize| {
                write_to(address);
                anyhow::Ok(())
            };
            let Error::ProcessExited(exception) = spawn(work, address, 1).unwrap_err() else { panic!() };
            assert_eq!(
                (exception.signal_name().as_deref(), exception.exit_code()),
                (Some("SIGSEGV"), Some(-11))
            );
            assert_eq!(exception.cause(), Some(Cause::InvalidAccess { address: address as u64 }));
            let frames = own_frames(exception.traceback().unwrap());
            assert_eq!(frames[0].0, "failure::write_to");
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn address_that_cannot_exist_is_not_taken_for_null() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            write_to(0xdead_beef_dead_bee0);
            Ok(())
        });
        assert_eq!((exception.signal_name().as_deref(), exception.cause()), (Some("SIGSEGV"), None));
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn fault_where_the_unwinder_gives_up_still_ends_the_worker() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            // SAFETY: none: a bad write where the unwind information makes no sense, which is what is tested.
            unsafe {
                std::arch::asm!(
                    ".cfi_remember_state",
                    ".cfi_escape 0x0f, 1, 0xff",
                    "mov byte ptr [0x10], 1",
                    ".cfi_restore_state",
                )
            };
            Ok(())
        });
        assert!(exception.signal_name().is_some(), "{exception}");
    });
}

#[test]
fn fault_in_another_thread_has_a_traceback_too() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            std::thread::spawn(|| write_to(16)).join().map_err(|_| anyhow::anyhow!("joined"))
        });
        assert_eq!(own_frames(exception.traceback().unwrap())[0].0, "failure::write_to");
        let last = exception.traceback().unwrap().frames().last().unwrap().function.clone();
        assert!(last.starts_with("failure::"), "nothing of std's own comes last: {exception}");
    });
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { frame[1] } else { recurse(depth + 1) + frame[0] }
}

#[test]
fn stack_overflow_is_named_and_its_traceback_is_short() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            std::hint::black_box(recurse(0));
            Ok(())
        });
        assert_eq!(
            (exception.signal_name().as_deref(), exception.cause()),
            (Some("SIGSEGV"), Some(Cause::StackOverflow))
        );
        assert_eq!(own_frames(exception.traceback().unwrap())[0].0, "failure::recurse");
        let text = exception.to_string();
        assert!(text.contains("probable cause: stack overflow") && text.contains("the same"), "{text}");
        assert!(text.lines().count() < 30, "{text}");
    });
}

#[test]
fn illegal_instruction_and_bus_error_have_tracebacks() {
    watched(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let exception = exited_by(|_, ()| {
                // SAFETY: none: this is the mistake that is tested.
                unsafe { std::arch::asm!("ud2") };
                Ok(())
            });
            assert_eq!(exception.signal_name().as_deref(), Some("SIGILL"));
            assert!(exception.traceback().is_some());
        }
        let exception = exited_by(|_, ()| {
            let file = tempfile::tempfile()?;
            let len = std::num::NonZero::new(4096).context("no length")?;
            use nix::sys::mman::{MapFlags, ProtFlags, mmap};
            // SAFETY: a new map; that the file is shorter is the mistake that is tested.
            let map = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }?;
            // SAFETY: as above.
            std::hint::black_box(unsafe { map.cast::<u8>().as_ptr().read_volatile() });
            Ok(())
        });
        assert_eq!(exception.signal_name().as_deref(), Some("SIGBUS"));
        assert!(exception.traceback().is_some());
    });
}

#[test]
fn core_dump_is_told() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    watched(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let work = |_, dir: std::path::PathBuf| -> anyhow::Result<()> {
            let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
            setrlimit(Resource::RLIMIT_CORE, hard, hard)?;
            std::env::set_current_dir(dir)?;
            std::process::abort()
        };
        let Error::ProcessExited(exception) = spawn(work, dir.path().to_owned(), 1).unwrap_err() else {
            panic!()
        };
        // A core is left only where the system allows it and puts it into the working directory.
        let expected = hard > 0 && !pattern.starts_with(['|', '/']);
        if expected {
            assert!(
                exception.core_dumped() && exception.to_string().contains("(core dumped)"),
                "{exception}"
            );
        }
        assert_eq!(exception.signal_name().as_deref(), Some("SIGABRT"));
    });
}

#[test]
fn kill_in_the_middle_of_a_report_of_64_megabytes_is_told() {
    watched(|| {
        let work = |_, ()| -> anyhow::Result<()> {
            // Ends the process when a part of the report is in its slot.
            std::thread::spawn(|| {
                let slot =
                    common::descriptors().into_iter().find(|(_, target)| target.contains("phalanx-report"));
                let slot = format!("/proc/self/fd/{}", slot.unwrap().0);
                await_that(|| std::fs::metadata(&slot).unwrap().len() > 1 << 20);
                kill_self()
            });
            anyhow::bail!("{}", "m".repeat(64 << 20))
        };
        let exception = exited_by(work);
        assert_eq!((exception.exit_code(), exception.cause()), (Some(-9), Some(Cause::ReportCutShort)));
        assert!(exception.to_string().contains("its last words: its function returned an error: mmmm"));
    });
}

#[test]
fn damaged_report_is_told() {
    watched(|| {
        extern "C" fn truncate_slot() {
            let slot =
                common::descriptors().into_iter().find(|(_, target)| target.contains("phalanx-report"));
            let path = format!("/proc/self/fd/{}", slot.unwrap().0);
            std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
        }
        let exception = exited_by(|_, ()| {
            // SAFETY: registers a function of this program.
            unsafe { libc::atexit(truncate_slot) };
            anyhow::bail!("whole at first")
        });
        assert_eq!((exception.exit_code(), exception.cause()), (Some(1), Some(Cause::ReportCutShort)));
        assert!(exception.to_string().contains("its report cannot be read"), "{exception}");
    });
}

#[test]
fn nested_failure_reads_well() {
    fn inner(rank: usize, _: ()) -> anyhow::Result<()> {
        if rank == 1 { anyhow::bail!("the innermost trouble") } else { wait_for_ever() }
    }
    fn outer(_: usize, _: ()) -> anyhow::Result<()> {
        spawn(inner, (), 2).context("the inner workers failed")?;
        Ok(())
    }
    watched(|| {
        let exception = raised_by(outer);
        assert_eq!(exception.chain()[0], "the inner workers failed");
        assert!(
            exception.chain()[1]
                .starts_with("-- Process 1 terminated with the following error:\nthe innermost trouble")
        );
        let text = exception.to_string();
        assert!(
            text.contains(
                "    0: -- Process 1 terminated with the following error:\n       the innermost trouble"
            ),
            "{text}"
        );
        let frames = own_frames(exception.traceback());
        assert!(frames[0].0.starts_with("failure::nested_failure_reads_well::outer"), "{frames:?}");
    });
}

#[test]
fn exceptions_and_outcomes_travel_by_serde() {
    fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        assert_eq!(&serde_json::from_str::<T>(&serde_json::to_string(value).unwrap()).unwrap(), value);
        assert_eq!(&postcard::from_bytes::<T>(&postcard::to_stdvec(value).unwrap()).unwrap(), value);
    }
    watched(|| {
        let raised = raised_by(read_config);
        round_trip(&raised);
        round_trip(&raised.outcomes()[0]);
        let exited = exited_by(|_, ()| {
            write_to(0);
            Ok(())
        });
        round_trip(&exited);
        let text = serde_json::to_string(&raised).unwrap();
        assert!(serde_json::from_str::<ProcessRaisedException>(&text.replacen("[0,", "[7,", 1)).is_err());
        let exited = serde_json::to_string(&exited).unwrap();
        assert!(serde_json::from_str::<ProcessRaisedException>(&exited).is_err());
    });
}

#[test]
fn killed_for_memory_is_told() {
    // A worker in a memory cgroup of its own, where that can be made; the launcher in the same, since the kernel
    // counts by cgroup.
    watched(|| {
        let Some(group) = MemoryGroup::new(200 << 20) else {
            // Not allowed to make a memory cgroup: `diagnose` is still tested without processes.
            return;
        };
        let launcher = |_, join: String| -> anyhow::Result<(Option<Cause>, Option<i32>)> {
            std::fs::write(&join, std::process::id().to_string())?;
            let eat = |_, ()| -> anyhow::Result<()> {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(std::hint::black_box(vec![1_u8; 16 << 20]));
                }
            };
            // The kernel kills the largest of the cgroup, which the launcher is not.
            let Err(Error::ProcessExited(exception)) = spawn(eat, (), 1) else { anyhow::bail!("not killed") };
            Ok((exception.cause(), exception.exit_code()))
        };
        let seen = start_processes(launcher, group.join_file(), Options::new(1)).unwrap().join();
        drop(group);
        let (cause, code) = seen.unwrap().remove(0);
        assert!(matches!(cause, Some(Cause::OutOfMemory { kills: 1.. })), "{cause:?}");
        assert_eq!(code, Some(-9));
    });
}

/// A memory cgroup for one test, removed at its end.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(limit: u64) -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("phalanx-test-{}", std::process::id());
        let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
        let (parent, file) = match v1 {
            Some((_, path)) => (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"),
            None => (format!("/sys/fs/cgroup{}", own.lines().next()?.strip_prefix("0::")?), "memory.max"),
        };
        let group = Self(std::path::Path::new(&parent).join(name));
        std::fs::create_dir(&group.0).ok()?;
        std::fs::write(group.0.join(file), limit.to_string()).ok()?;
        Some(group)
    }

    fn join_file(&self) -> String {
        self.0.join("cgroup.procs").to_str().unwrap().to_owned()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // The kernel lets go of it a moment after its last process.
        await_that(|| std::fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

#[test]
fn panic_in_another_thread_is_not_the_functions() {
    watched(|| {
        let work = |_, ()| anyhow::Ok(std::thread::spawn(|| panic!("aside")).join().is_err());
        assert_eq!(spawn(work, (), 1).unwrap(), [true]);
    });
}

#[test]
fn status_lines_are_readable() {
    watched(|| {
        let work = |rank, _: Tensor<u8>| -> anyhow::Result<()> {
            if rank == 2 { panic!("two lines\nof text") } else { wait_for_ever() }
        };
        let mut context = start_processes(work, Tensor::zeros(&[1]).unwrap(), Options::new(3)).unwrap();
        while context.join_timeout(std::time::Duration::from_millis(50)).is_ok() {}
        let lines: Vec<_> = context.outcomes().unwrap().iter().map(ToString::to_string).collect();
        assert!(lines[0].contains("terminated with signal SIGTERM by the teardown, after "), "{lines:?}");
        assert!(
            lines[2].contains("raised: panicked at tests/failure.rs:")
                && lines[2].contains(": two lines, after")
        );
        assert_eq!(context.status(2).unwrap(), Status::Raised);
    });
}

#[test]
fn errors_and_payloads_that_panic_themselves_do_not_cost_the_report() {
    struct Bad(u32);
    impl Drop for Bad {
        fn drop(&mut self) {
            assert!(self.0 == 0, "a destructor that panics");
        }
    }
    impl fmt::Debug for Bad {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Bad")
        }
    }
    impl fmt::Display for Bad {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            assert!(self.0 < 2, "a Display that panics");
            f.write_str("shown")
        }
    }
    impl std::error::Error for Bad {}
    watched(|| {
        let exception = raised_by(|_, ()| Err(Bad(1).into()));
        assert_eq!(exception.chain(), ["shown"]);
        let exception = raised_by(|_, ()| Err(Bad(2).into()));
        assert!(exception.chain()[0].contains("its Display panicked: a Display that panics"), "{exception}");
        let exception = raised_by(|_, ()| std::panic::panic_any(Bad(1)));
        assert_eq!(exception.chain(), ["Box<dyn Any>"]);
        assert!(exception.traceback().frames()[0].function.starts_with("failure::"), "{exception}");
    });
}

#[test]
fn children_that_the_function_forks_do_not_speak_for_it() {
    fn fork_and(child: fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        // SAFETY: this worker has a single thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            return child();
        }
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None)?;
        kill_self()
    }
    fn exits() -> anyhow::Result<()> {
        #[expect(clippy::exit, clippy::disallowed_methods, reason = "this is what is tested")]
        std::process::exit(0)
    }
    fn panics() -> anyhow::Result<()> {
        panic!("in the child")
    }
    fn faults() -> anyhow::Result<()> {
        write_to(8);
        Ok(())
    }
    watched(|| {
        for child in 0..4 {
            let work = |_, child: usize| fork_and([exits, panics, faults, || Ok(())][child]);
            let Error::ProcessExited(exception) = spawn(work, child, 1).unwrap_err() else {
                panic!("child {child}")
            };
            assert_eq!((exception.exit_code(), exception.cause()), (Some(-9), None), "{exception}");
            assert!(exception.traceback().is_none(), "{exception}");
            assert!(exception.to_string().contains("was seen dead"), "no moment of the child's: {exception}");
        }
    });
}

#[test]
fn two_threads_that_fault_at_once_leave_one_traceback() {
    // Unlike each other, and with something to do after the call, so that the optimiser keeps both.
    #[inline(never)]
    fn first(address: usize) {
        write_to(address);
        std::hint::black_box(1_u8);
    }
    #[inline(never)]
    fn second(address: usize) {
        write_to(address);
        std::hint::black_box("two");
    }
    watched(|| {
        for _ in 0..20 {
            let exception = exited_by(|_, ()| {
                let barrier = std::sync::Arc::new(std::sync::Barrier::new(2));
                let other = std::sync::Arc::clone(&barrier);
                std::thread::spawn(move || {
                    other.wait();
                    first(0x10);
                });
                barrier.wait();
                second(0x20);
                wait_for_ever()
            });
            let has = |part: &str| {
                exception.traceback().unwrap().frames().iter().any(|frame| frame.function.ends_with(part))
            };
            assert!(has("::first") != has("::second"), "{exception}");
            let address = if has("::first") { 0x10 } else { 0x20 };
            assert_eq!(exception.cause(), Some(Cause::InvalidAccess { address }), "{exception}");
        }
    });
}

#[test]
fn panic_of_a_thread_that_is_resumed_keeps_its_place() {
    watched(|| {
        let exception = raised_by(|_, ()| {
            let quiet = std::thread::spawn(|| panic!("in a thread"));
            quiet.join().map_err(|payload| std::panic::resume_unwind(payload))
        });
        assert_eq!(exception.chain(), ["in a thread"]);
        assert!(exception.panic_location().unwrap().contains("tests/failure.rs:"));
    });
}

#[test]
fn function_that_closes_its_report_slot_is_told_and_its_files_are_spared() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let work = |_, dir: std::path::PathBuf| -> anyhow::Result<()> {
            // Closes everything above 2, then opens files that get the numbers.
            // SAFETY: this worker has no other use for them, which is the mistake that is tested.
            unsafe { libc::close_range(3, u32::MAX, 0) };
            for name in 0..8 {
                std::mem::forget(std::fs::File::create(dir.join(name.to_string()))?);
            }
            Ok(())
        };
        let Error::ProcessExited(exception) = spawn(work, dir.path().to_owned(), 1).unwrap_err() else {
            panic!()
        };
        assert_eq!(exception.cause(), Some(Cause::ReportCutShort));
        assert!(exception.to_string().contains("its descriptor was closed"), "{exception}");
        for file in std::fs::read_dir(dir.path()).unwrap() {
            assert_eq!(file.unwrap().metadata().unwrap().len(), 0);
        }
    });
}
