//! What only the compiler can show: the error for a closure that captures, and code in a shared object.

#![expect(unsafe_code, reason = "a shared object is loaded and called")]

mod common;

use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

phalanx::auto_init!();

/// Compiles a small crate against this very build of phalanx.
fn rustc(kind: &str, source: &str, dir: &Path) -> Output {
    rustc_with(&[], kind, source, dir)
}

fn rustc_with(arguments: &[&str], kind: &str, source: &str, dir: &Path) -> Output {
    let file = dir.join("program.rs");
    fs::write(&file, source).unwrap();
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", kind, "--crate-name", "program", "--out-dir"]).arg(dir);
    rustc.arg("-L").arg(format!("dependency={}", deps.display()));
    for name in ["phalanx", "anyhow"] {
        rustc.arg("--extern").arg(format!("{name}={}", newest_rlib(&deps, name).display()));
    }
    rustc.args(arguments).arg(file).output().unwrap()
}

/// The build of a crate that cargo made last: it made this test's dependencies just before this test.
fn newest_rlib(deps: &Path, name: &str) -> PathBuf {
    let prefix = format!("lib{name}-");
    let files = fs::read_dir(deps).unwrap().map(|entry| entry.unwrap().path());
    let rlibs = files.filter(|path| {
        let file = path.file_name().unwrap().to_string_lossy();
        file.starts_with(&prefix) && file.ends_with(".rlib")
    });
    rlibs.max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).unwrap()
}

#[test]
fn closure_that_captures_is_refused_with_a_reason() {
    let program = |closure: &str| {
        format!(
            "fn main() {{ let scale = 2.0;\nlet _ = phalanx::spawn({closure}, (), 1);\nlet _: f64 = scale; }}"
        )
    };
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let fine = rustc("bin", &program("|rank, _: ()| anyhow::Ok(rank as f64)"), dir.path());
        assert!(fine.status.success(), "{}", String::from_utf8_lossy(&fine.stderr));
        let captures =
            rustc("bin", &program("move |rank, _: ()| anyhow::Ok(rank as f64 * scale)"), dir.path());
        let told = String::from_utf8_lossy(&captures.stderr);
        assert!(!captures.status.success());
        assert!(
            told.contains("phalanx: this is a closure that captures variables, or a function pointer"),
            "{told}"
        );
        // The call itself is shown, of which the rest is about the library.
        assert!(told.contains("2 | let _ = phalanx::spawn(move |rank"), "{told}");
    });
}

#[test]
fn boxed_error_is_refused_with_its_remedy() {
    const PROGRAM: &str = r#"
        fn work(_: usize, _: ()) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
        fn main() { let _ = phalanx::spawn(work, (), 1); }
    "#;
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let refused = rustc("bin", PROGRAM, dir.path());
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success());
        assert!(
            told.contains("error[E0277]: a worker's function cannot return the error type `Box<"),
            "{told}"
        );
        assert!(told.contains("let it return `anyhow::Result<R>`"), "{told}");
        assert_eq!(told.matches("error[").count(), 1, "{told}");
    });
}

/// These messages are serde's own, which name the type and the remedy.
#[test]
fn argument_and_result_without_serde_are_refused_with_their_remedy() {
    const FUNCTIONS: [(&str, &str); 2] = [
        ("Plain", "fn work(_: usize, _: Plain) -> std::io::Result<()> { Ok(()) }"),
        ("()", "fn work(_: usize, _: ()) -> std::io::Result<Plain> { Ok(Plain) }"),
    ];
    common::watched(|| {
        for (argument, function) in FUNCTIONS {
            let dir = tempfile::tempdir().unwrap();
            let program = format!(
                "struct Plain; {function} fn main() {{ let _ = phalanx::spawn(work, {argument}, 1); }}"
            );
            let told = rustc("bin", &program, dir.path()).stderr;
            let told = String::from_utf8_lossy(&told);
            assert!(told.contains("`Plain: serde::Serialize` is not satisfied"), "{told}");
            assert!(told.contains("#[derive(serde::Serialize)]"), "{told}");
        }
    });
}

#[test]
fn function_in_a_shared_object_is_an_error() {
    const LIBRARY: &str = r#"
        use std::ffi::{CString, c_char};
        fn work(rank: usize, _: ()) -> anyhow::Result<usize> { Ok(rank) }
        phalanx::auto_init!();
        #[unsafe(no_mangle)]
        pub extern "C" fn try_to_spawn() -> *mut c_char {
            phalanx::init();
            let told = match phalanx::spawn(work, (), 2) {
                Ok(_) => "it was started".to_owned(),
                Err(error) => error.to_string(),
            };
            CString::new(told).unwrap().into_raw()
        }
    "#;
    // init counts on the main thread only, so a worker loads the object.
    fn load(_: usize, object: PathBuf) -> anyhow::Result<String> {
        let path = CString::new(object.to_str().unwrap())?;
        // SAFETY: the object was just built from the source above; its hook does nothing in a shared object.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        anyhow::ensure!(!handle.is_null(), "dlopen failed");
        // SAFETY: the handle is open.
        let symbol = unsafe { libc::dlsym(handle, c"try_to_spawn".as_ptr()) };
        anyhow::ensure!(!symbol.is_null(), "the function is not there");
        // SAFETY: this is its type in the source above.
        let call =
            unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> *mut c_char>(symbol) };
        // SAFETY: it returns a string of its own that is never freed.
        Ok(unsafe { CStr::from_ptr(call()) }.to_str()?.to_owned())
    }
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let built = rustc("cdylib", LIBRARY, dir.path());
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let told = phalanx::spawn(load, dir.path().join("libprogram.so"), 1).unwrap().remove(0);
        assert!(told.contains("program::work` does not lie in the executable"), "{told}");
    });
}

#[test]
#[expect(clippy::print_stdout, reason = "what was not tested is said")]
fn program_that_a_loader_runs_and_that_nothing_identifies_is_not_run_again() {
    const PROGRAM: &str = r#"
        fn work(rank: usize, _: ()) -> anyhow::Result<usize> { Ok(rank) }
        fn main() {
            phalanx::init();
            println!("{:?}", phalanx::spawn(work, (), 1).map_err(|error| error.to_string()));
        }
    "#;
    let loader = Path::new(common::LOADER);
    if !loader.exists() {
        return println!("not tested: there is no {}", loader.display());
    }
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let built = rustc_with(&["-Clink-arg=-Wl,--build-id=none"], "bin", PROGRAM, dir.path());
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let program = dir.path().join("program");
        let marker = dir.path().join("marker");
        // What stands in the place of an argument must not be run.
        let script = dir.path().join("script");
        fs::write(&script, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let told = |command: &mut Command| String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(told(&mut Command::new(&program)), "Ok([0])\n");
        let refused = told(Command::new(loader).args([&program, &script]));
        assert!(refused.contains("is not its file") && refused.contains("/ld-linux"), "{refused}");
        assert!(!marker.exists());
    });
}

#[test]
fn init_inside_of_a_runtime_is_told_by_the_worker() {
    // Looks like tokio from the outside: its threads' name, and its paths on the stack.
    const PROGRAM: &str = r#"
        mod tokio { pub mod runtime { pub mod scheduler {
            pub mod current_thread {
                #[inline(never)]
                pub fn block_on(work: fn()) { work(); std::hint::black_box(()); }
            }
            pub mod multi_thread {
                #[inline(never)]
                pub fn block_on(work: fn()) { work(); std::hint::black_box(()); }
            }
        } } }
        use tokio::runtime::scheduler::{current_thread, multi_thread};
        fn work(rank: usize, _: ()) -> anyhow::Result<usize> { Ok(rank) }
        fn real_main() {
            phalanx::init();
            println!("{:?}", phalanx::spawn(work, (), 2).map_err(|error| error.to_string()));
        }
        fn main() {
            let name = std::env::args().nth(1).unwrap();
            std::thread::Builder::new().name(name).spawn(|| loop { std::thread::park() }).unwrap();
            match std::env::args().nth(2).as_deref() {
                Some("current") => current_thread::block_on(real_main),
                Some(_) => multi_thread::block_on(real_main),
                None => real_main(),
            }
        }
    "#;
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let built = rustc("bin", PROGRAM, dir.path());
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let told = |arguments: &[&str]| {
            let output = Command::new(dir.path().join("program")).args(arguments).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        // A thread of whatever name is no reason to refuse, unless main is inside of a runtime with several.
        for fine in [&["profiler"][..], &["profiler", "current"], &["tokio-rt-worker"]] {
            assert_eq!(told(fine), "Ok([0, 1])\n");
        }
        let refused = told(&["tokio-rt-worker", "multi"]);
        assert!(
            refused.contains("phalanx::init() was called inside of a tokio runtime (2 threads: "),
            "{refused}"
        );
        assert!(refused.contains("without #[tokio::main]"), "{refused}");
    });
}

#[test]
fn forked_worker_writes_its_coverage() {
    const PROGRAM: &str = r#"
        fn work(rank: usize, _: ()) -> anyhow::Result<usize> { Ok(rank) }
        fn main() {
            phalanx::init();
            let options = phalanx::Options::new(1).start_method(phalanx::StartMethod::Fork);
            let told = phalanx::start_processes(work, (), options).and_then(|context| context.join());
            println!("{:?}", told.map_err(|error| error.to_string()));
            // Without what exit does: what is written is the worker's.
            std::process::abort()
        }
    "#;
    common::watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let built = rustc_with(&["-Cinstrument-coverage"], "bin", PROGRAM, dir.path());
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let profile = dir.path().join("profile");
        let mut program = Command::new(dir.path().join("program"));
        let output = program.env("LLVM_PROFILE_FILE", &profile).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Ok([0])\n");
        assert!(fs::metadata(profile).unwrap().len() > 0);
    });
}
