//! A program that is not /proc/self/exe: the loader was run with its name (ld.so(8)).

mod common;

use std::path::Path;
use std::process::Command;

use common::{LOADER, by, own_frames, raised, watched};
use phalanx::{StartMethod, spawn, start_processes};

phalanx::auto_init!();

#[inline(never)]
fn fail(_: usize, _: ()) -> anyhow::Result<()> {
    anyhow::bail!("on purpose")
}

#[test]
fn methods_that_run_the_program_again_run_this_one() {
    fn work(rank: usize, by: usize) -> anyhow::Result<(usize, Vec<String>)> {
        Ok((by * rank, std::env::args().skip(1).collect()))
    }
    // The fork server stays, so it has a launcher that does not.
    fn launch(_: usize, method: StartMethod) -> anyhow::Result<()> {
        let results = start_processes(work, 3, by(method, 2))?.join()?;
        let own: Vec<_> = std::env::args().skip(1).collect();
        anyhow::ensure!(results == [(0, own.clone()), (3, own)], "{results:?}");
        // Its frames are named from this program's file too, not from the loader's.
        let exception = raised(start_processes(fail, (), by(method, 1))?.join().unwrap_err());
        let frames = own_frames(exception.traceback());
        anyhow::ensure!(frames.iter().any(|(name, _)| name == "fail"), "{exception}");
        Ok(())
    }
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            spawn(launch, method, 1).unwrap();
        }
    });
}

#[test]
#[expect(clippy::print_stdout, reason = "what was not tested is said")]
fn methods_that_run_the_program_again_do_so_through_its_loader() {
    if !Path::new(LOADER).exists() {
        return println!("not tested: there is no {LOADER}");
    }
    watched(|| {
        let mut loader = Command::new(LOADER);
        loader.args(["--library-path", "/nowhere"]).arg(std::env::current_exe().unwrap());
        // To a program that is run by its arguments alone the second would be its name.
        loader.args(["methods_that_run_the_program_again_run_this_one", "/bin/false"]);
        let output = loader.output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{output:?}");
    });
}
