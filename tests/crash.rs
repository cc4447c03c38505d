//! Fatal signals: names, tracebacks, causes.

#![expect(unsafe_code, reason = "these workers hurt themselves")]

mod common;

use anyhow::Context;
use common::{exited_by, own_frames, wait_for_ever, watched, write_to};
use phalanx::{Cause, Error, spawn};

phalanx::auto_init!();

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
        let innermost = &exception.traceback().unwrap().frames()[0].function;
        assert!(innermost.starts_with("crash::"), "nothing of what raises it comes first: {exception}");
    });
}

/// The signals that wait while a fatal one is recorded.
fn waiting_meanwhile(_: usize, fatal: i32) -> anyhow::Result<Vec<i32>> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: reads the disposition of a signal into a struct of that type.
    let asked = unsafe { libc::sigaction(fatal, std::ptr::null(), action.as_mut_ptr()) };
    anyhow::ensure!(asked == 0, std::io::Error::last_os_error());
    // SAFETY: sigaction(2) has filled it.
    let action = unsafe { action.assume_init() };
    // SAFETY: asks for one signal of a set.
    Ok((1..32)
        .filter(|&signal| unsafe { libc::sigismember(&raw const action.sa_mask, signal) } == 1)
        .collect())
}

/// Else the teardown of another rank would end a worker that is just writing down what has met it, and that would be told of nothing.
#[test]
fn signals_of_the_teardown_wait_until_a_fatal_one_is_recorded() {
    watched(|| {
        for fatal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT] {
            let waiting = spawn(waiting_meanwhile, fatal, 1).unwrap().remove(0);
            assert!(
                [libc::SIGTERM, libc::SIGINT, fatal].iter().all(|signal| waiting.contains(signal)),
                "{waiting:?}"
            );
        }
    });
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
            assert_eq!(frames[0].0, "common::write_to");
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
fn jump_to_the_last_address_keeps_its_signal() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            // SAFETY: none: there is no function, which is the mistake that is tested.
            let nowhere = unsafe { std::mem::transmute::<usize, extern "C" fn()>(usize::MAX) };
            nowhere();
            Ok(())
        });
        assert_eq!(exception.signal_name().as_deref(), Some("SIGSEGV"), "{exception}");
        assert!(exception.traceback().is_some(), "{exception}");
    });
}

#[test]
fn fault_in_another_thread_has_a_traceback_too() {
    watched(|| {
        let exception = exited_by(|_, ()| {
            std::thread::spawn(|| write_to(16)).join().map_err(|_| anyhow::anyhow!("joined"))
        });
        assert_eq!(own_frames(exception.traceback().unwrap())[0].0, "common::write_to");
        let last = exception.traceback().unwrap().frames().last().unwrap().function.clone();
        assert!(last.starts_with("crash::"), "nothing of std's own comes last: {exception}");
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
        // Without its line: the compiler gives none to some of the instructions that can meet the end of the stack.
        assert_eq!(exception.traceback().unwrap().frames()[0].function, "crash::recurse");
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
