//! Tracebacks of programs whose file is gone, is another one's, or says nothing.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{skipped, watched};
use phalanx::{Frame, StartMethod, start_processes};

phalanx::auto_init!();

/// Makes a copy of this test binary a program with a part to play.
const PART: &str = "PHALANX_TEST_PART";
/// What a line of the program's output begins with that is a traceback.
const MARK: &str = "traceback: ";

#[inline(never)]
fn inner(panics: bool) -> anyhow::Result<()> {
    assert!(!panics, "no luck");
    // Not made by a call at the very end, which would leave no frame of this function in a release build.
    std::hint::black_box(Err(anyhow::anyhow!("no luck")))
}

fn work(_: usize, panics: bool) -> anyhow::Result<()> {
    inner(panics)?;
    // So that the call above is not at the very end, where it would leave no frame of this function.
    std::hint::black_box(panics);
    Ok(())
}

fn work_in_another_root(_: usize, (root, panics): (PathBuf, bool)) -> anyhow::Result<()> {
    nix::unistd::chroot(&root)?;
    inner(panics)?;
    std::hint::black_box(panics);
    Ok(())
}

/// What the copy does. Among the tests it is one that has nothing to do.
#[test]
fn play_a_part() {
    let own = std::env::current_exe().unwrap();
    match std::env::var(PART).as_deref() {
        Err(_) => {}
        Ok("deleted") => {
            fs::remove_file(&own).unwrap();
            tell_failures();
        }
        Ok("replaced") => {
            let other = own.with_extension("other");
            fs::copy("/proc/self/exe", &other).unwrap();
            // With no section that names anything.
            hide_sections(&other);
            fs::rename(other, &own).unwrap();
            tell_failures();
        }
        Ok("as it is") => tell_failures(),
        Ok(root) => {
            for panics in [false, true] {
                let work = work_in_another_root;
                let error = phalanx::spawn(work, (PathBuf::from(root), panics), 1).unwrap_err();
                tell(error);
            }
        }
    }
}

fn tell_failures() {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        for panics in [false, true] {
            tell(start_processes(work, panics, common::by(method, 1)).unwrap().join().unwrap_err());
        }
    }
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn tell(error: phalanx::Error) {
    let exception = common::raised(error);
    println!("\n{MARK}{}", serde_json::to_string(exception.traceback()).unwrap());
}

/// A copy of this test binary in a directory.
fn copy_in(dir: &Path) -> PathBuf {
    let copy = dir.join("program");
    fs::copy("/proc/self/exe", &copy).unwrap();
    copy
}

/// The tracebacks that a copy tells of.
fn tracebacks(copy: &Path, part: &str, user: Option<u32>) -> Vec<Vec<Frame>> {
    let mut command = Command::new(copy);
    command.args(["--exact", "play_a_part", "--nocapture"]).env(PART, part);
    // With 0 an `Err` would have no traceback.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.lines()
        .filter_map(|line| line.strip_prefix(MARK))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Takes a file of code its table of sections, symbols and debug information with it. It runs as before.
fn hide_sections(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    // e_shoff; e_shnum and e_shstrndx (elf(5)).
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    fs::write(file, bytes).unwrap();
}

/// Both ends are the user's own, with place.
fn assert_whole(tracebacks: &[Vec<Frame>], outermost: &str) {
    for frames in tracebacks {
        let names: Vec<_> = frames.iter().map(|frame| frame.function.as_str()).collect();
        assert_eq!(names, ["traces::inner", outermost], "{frames:#?}");
        let in_this_file =
            |frame: &Frame| frame.file.as_ref().is_some_and(|file| file.ends_with("tests/traces.rs"));
        assert!(frames.iter().all(|frame| in_this_file(frame) && frame.line.is_some()), "{frames:#?}");
    }
}

/// Addresses of the executable only, and at last the name of the user's function, which is always known.
fn assert_bare(tracebacks: &[Vec<Frame>]) {
    for frames in tracebacks {
        let (last, others) = frames.split_last().unwrap();
        assert_eq!(last.function, "traces::work", "{frames:#?}");
        assert!(
            others.len() >= 2 && others.iter().all(|frame| frame.function.starts_with("executable+0x")),
            "{frames:#?}"
        );
    }
}

#[test]
fn deleted_and_replaced_executables_have_tracebacks() {
    watched(|| {
        for part in ["as it is", "deleted", "replaced"] {
            let dir = tempfile::tempdir().unwrap();
            let told = tracebacks(&copy_in(dir.path()), part, None);
            assert_eq!(told.len(), 4, "{part}");
            assert_whole(&told, "traces::work");
        }
    });
}

#[test]
fn worker_in_another_root_has_a_traceback() {
    watched(|| {
        if !nix::unistd::geteuid().is_root() {
            return skipped("only root may change its root");
        }
        let dir = tempfile::tempdir().unwrap();
        let told = tracebacks(&copy_in(dir.path()), dir.path().to_str().unwrap(), None);
        assert_eq!(told.len(), 2);
        assert_whole(&told, "traces::work_in_another_root");
    });
}

#[test]
fn executable_without_symbols_has_trimmed_addresses() {
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        let copy = copy_in(dir.path());
        hide_sections(&copy);
        let told = tracebacks(&copy, "as it is", None);
        assert_eq!(told.len(), 4);
        assert_bare(&told);
    });
}

#[test]
fn executable_that_may_not_be_read_has_trimmed_addresses() {
    watched(|| {
        if !nix::unistd::geteuid().is_root() {
            return skipped("only root may become another user, who may not read its file");
        }
        let dir = tempfile::tempdir().unwrap();
        let copy = copy_in(dir.path());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o711)).unwrap();
        let told = tracebacks(&copy, "as it is", Some(65534));
        assert_eq!(told.len(), 4);
        assert_bare(&told);
    });
}
