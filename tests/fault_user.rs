//! As the author of a launcher's test suite would write it, with the public interface alone: a small training job, and what must hold of it
//! wherever a worker ends. `docs/faults.md` tells how.

#![forbid(unsafe_code, reason = "the points need none")]

use phalanx::collective::{Collective, Reduce};
use phalanx::{Error, FailureKind, Options, StartMethod, Tensor, fault, start_processes};

phalanx::auto_init!();

const RANKS: usize = 3;
const STEPS: usize = 4;

/// Learns the slope of a line by synchronous gradient descent, and saves it every other step.
fn train(rank: usize, (group, directory): (Collective, std::path::PathBuf)) -> anyhow::Result<f32> {
    let mut member = group.join(rank)?;
    let (mut slope, gradient) = (0.0_f32, Tensor::<f32>::zeros(&[1])?);
    for step in 0..STEPS {
        fault::point!("train.step");
        let (x, y) = ((rank + 1) as f32, 2.0 * (rank + 1) as f32);
        gradient.set(0, (slope * x - y) * x)?;
        member.all_reduce(&gradient, Reduce::Sum)?;
        slope -= 0.05 * gradient.get(0)?;
        if step % 2 == 1 && rank == 0 {
            save(&directory, slope)?;
        }
    }
    Ok(slope)
}

/// Either the old checkpoint is there or the new one.
fn save(directory: &std::path::Path, slope: f32) -> std::io::Result<()> {
    fault::point!("ckpt.write", |injected| return Err(injected.into()));
    std::fs::write(directory.join("next"), slope.to_le_bytes())?;
    fault::point!("ckpt.rename");
    std::fs::rename(directory.join("next"), directory.join("slope"))
}

fn job(directory: &std::path::Path) -> impl Fn(&fault::Faults) -> Result<Vec<f32>, Error> {
    move |faults| {
        let group = Collective::new(RANKS).expect("there is memory");
        let options = Options::new(RANKS).start_method(StartMethod::Spawn).faults(faults);
        start_processes(train, (group, directory.to_owned()), options)?.join()
    }
}

#[test]
fn worker_that_ends_at_any_step_is_named_and_nobody_hangs() {
    let directory = tempfile::tempdir().unwrap();
    for action in ["kill", "segv", "exit=0", "panic"] {
        let plan = format!("{action}@train.:rank=1");
        let sweep = fault::sweep(&plan, job(directory.path())).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(sweep.trials(), STEPS as u64);
    }
}

#[test]
fn checkpoint_is_whole_wherever_its_writer_ends() {
    let directory = tempfile::tempdir().unwrap();
    for action in ["kill", "error=ENOSPC"] {
        let sweep = fault::sweep(&format!("{action}@ckpt.:rank=0"), |faults| {
            let result = job(directory.path())(faults);
            let saved = std::fs::read(directory.path().join("slope"));
            assert!(saved.is_err() || saved.is_ok_and(|bytes| bytes.len() == 4), "half of a checkpoint");
            result
        });
        let sweep = sweep.unwrap_or_else(|error| panic!("{error}"));
        assert!(sweep.unreached().is_empty(), "{sweep}");
    }
}

#[test]
fn job_without_faults_learns() {
    let directory = tempfile::tempdir().unwrap();
    let trial = fault::observe("slow=1ms@train.step:one-in=3,seed=7", job(directory.path())).unwrap();
    let slopes = trial.result().unwrap();
    assert!(slopes.iter().all(|slope| (slope - 2.0).abs() < 0.1), "{slopes:?}");
    trial.verdict().unwrap();
}

#[test]
fn others_of_a_dead_worker_are_told_as_consequences() {
    let directory = tempfile::tempdir().unwrap();
    let trial = fault::trial("kill@train.step:rank=2:hit=3", job(directory.path())).unwrap();
    let Err(Error::ProcessExited(exception)) = trial.result() else { panic!("{:?}", trial.result()) };
    for outcome in exception.outcomes().iter().filter(|outcome| outcome.rank() != 2) {
        assert!(!matches!(outcome.failure_kind(), Some(FailureKind::Own)), "{outcome}");
    }
}
