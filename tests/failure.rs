//! What a failure looks like: messages, chains, panics, tracebacks.

mod common;

use std::fmt;
use std::io;

use anyhow::Context;
use common::{exited_by, own_frames, raised_by, wait_for_ever, watched, write_to};
use phalanx::{Options, ProcessRaisedException, Status, Tensor, spawn, start_processes};

phalanx::auto_init!();

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

#[inline(never)]
fn deep_in_the_code(x: Option<u32>) -> u32 {
    std::hint::black_box(x).unwrap()
}

#[inline(never)]
fn called_by(x: Option<u32>) -> u32 {
    // Kept, so that this is no tail call, which has no frame.
    std::hint::black_box(deep_in_the_code(x) + 1)
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
        assert_eq!(names[..2], ["deep_in_the_code", "called_by"]);
        let innermost = &exception.traceback().frames()[0].function;
        assert_eq!(*innermost, format!("failure::{}", names[0]), "nothing of the machinery comes first");
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
    #[expect(unsafe_code, clippy::disallowed_methods, reason = "in a process of its own")]
    fn outer(_: usize, _: ()) -> anyhow::Result<String> {
        // SAFETY: this worker has a single thread.
        unsafe { std::env::remove_var("RUST_BACKTRACE") };
        // SAFETY: as above.
        unsafe { std::env::remove_var("RUST_LIB_BACKTRACE") };
        Ok(own_frames(raised_by(read_config).traceback())[0].0.clone())
    }
    watched(|| assert_eq!(spawn(outer, (), 1).unwrap(), ["read_config"]));
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
fn panic_hook_of_the_function_is_told_unless_it_calls_ours() {
    watched(|| {
        let exception = raised_by(|_, ()| {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("unseen")
        });
        assert_eq!((exception.chain(), exception.panic_location()), (&["unseen".to_owned()][..], None));
        let text = exception.to_string();
        assert!(text.contains("panicked at an unknown place (the function has set a panic hook"), "{text}");
        let exception = raised_by(|_, ()| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| previous(info)));
            panic!("seen")
        });
        assert!(exception.panic_location().unwrap().contains("tests/failure.rs:"), "{exception}");
        assert!(own_frames(exception.traceback())[0].0.contains("panic_hook_of_the_function"), "{exception}");
        let exception = raised_by(|_, ()| std::panic::resume_unwind(Box::new("resumed")));
        assert!(exception.to_string().contains("panicked at an unknown place:"), "{exception}");
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
        assert!(frames[0].0.starts_with("nested_failure_reads_well::outer"), "{frames:?}");
    });
}

#[test]
fn exceptions_and_outcomes_travel_by_serde() {
    fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + fmt::Debug>(value: &T) {
        assert_eq!(&serde_json::from_str::<T>(&serde_json::to_string(value).unwrap()).unwrap(), value);
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
