//! Exits without a report, reports cut short, and who may not write one.

#![expect(unsafe_code, reason = "these workers hurt themselves")]

mod common;

use std::fmt;

use common::{await_that, exited_by, kill_self, raised_by, wait_for_ever, watched, write_to};
use phalanx::{Cause, Error, spawn};

phalanx::auto_init!();

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
        assert!(exception.traceback().frames()[0].function.starts_with("report::"), "{exception}");
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
fn function_that_closes_its_report_slot_is_told_and_its_files_are_spared() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let work = |_, dir: std::path::PathBuf| -> anyhow::Result<()> {
            // Closes everything above 2, then opens files that get the numbers.
            // SAFETY: this worker has no other use for them, which is the mistake that is tested.
            unsafe { libc::close_range(3, u32::MAX, 0) };
            for name in 0..16 {
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

#[test]
fn failure_whose_report_cannot_be_written_is_told_beside_the_reason() {
    fn fails(_: usize, how: usize) -> anyhow::Result<()> {
        // SAFETY: this worker has no other use for them, which is the mistake that is tested.
        unsafe { libc::close_range(3, u32::MAX, 0) };
        match how {
            0 => Err(anyhow::anyhow!("no more cheese").context("cannot serve")),
            1 => panic!("out of cheese"),
            _ => {
                std::panic::set_hook(Box::new(|_| ()));
                panic!("hidden cheese")
            }
        }
    }
    watched(|| {
        let words = [
            "its function returned an error: cannot serve: no more cheese",
            "out of cheese",
            "panicked at an unknown place: hidden cheese",
        ];
        for (how, failure) in words.into_iter().enumerate() {
            let Error::ProcessExited(exception) = spawn(fails, how, 1).unwrap_err() else { panic!() };
            let text = exception.to_string();
            assert!(text.contains("Bad file descriptor") && text.contains(failure), "{text}");
        }
    });
}
