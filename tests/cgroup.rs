//! Limits of control groups, and kills for want of memory in them: where this process may make groups.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{
    SOON, await_post, await_that, board, by, exited, left_by_ended_processes, own_name, post, skipped,
    wait_for_ever, watched,
};
use phalanx::{Cause, Error, ForkServer, OomScope, Options, StartMethod, Status, Tensor, start_processes};

phalanx::auto_init!();

/// A control group for one test, removed at its end.
struct Group {
    dir: PathBuf,
    is_v2: bool,
}

impl Group {
    /// A group at the top of a controller's hierarchy.
    fn new(controller: &str) -> Option<Self> {
        let one = Path::new("/sys/fs/cgroup").join(controller);
        let is_v2 = !one.exists();
        let base = if is_v2 { PathBuf::from("/sys/fs/cgroup") } else { one };
        if is_v2 && !fs::read_to_string(base.join("cgroup.subtree_control")).ok()?.contains(controller) {
            return None;
        }
        // A test process that a signal has ended could not remove its groups.
        for left in left_by_ended_processes(&base) {
            for inner in fs::read_dir(&left).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(inner.path());
            }
            let _ = fs::remove_dir(left);
        }
        Self::at(base.join(own_name()), is_v2)
    }

    /// A group inside.
    fn inner(&self, name: &str) -> Option<Self> {
        if self.is_v2 {
            fs::write(self.dir.join("cgroup.subtree_control"), "+memory").ok()?;
        }
        Self::at(self.dir.join(name), self.is_v2)
    }

    fn at(dir: PathBuf, is_v2: bool) -> Option<Self> {
        fs::create_dir(&dir).ok()?;
        Some(Self { dir, is_v2 })
    }

    fn limit_memory(&self, bytes: u64) -> Option<()> {
        let file = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.dir.join(file), bytes.to_string()).ok()
    }

    /// What puts the process that writes its pid there into the group.
    fn join_file(&self) -> String {
        self.dir.join("cgroup.procs").to_str().unwrap().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of it a moment after its last process.
        await_that(|| fs::remove_dir(&self.dir).is_ok() || !self.dir.exists());
    }
}

fn limited(bytes: u64) -> Option<Group> {
    let group = Group::new("memory")?;
    group.limit_memory(bytes)?;
    Some(group)
}

fn enter(join: &str) -> anyhow::Result<()> {
    Ok(fs::write(join, std::process::id().to_string())?)
}

fn eat() -> anyhow::Result<()> {
    let mut eaten = Vec::new();
    loop {
        eaten.push(std::hint::black_box(vec![1_u8; 16 << 20]));
    }
}

const NO_MEMORY_GROUP: &str = "no memory cgroup can be made here";

#[test]
fn worker_killed_for_memory_beside_its_launcher_is_told() {
    fn launch(
        _: usize,
        (join, method): (String, StartMethod),
    ) -> anyhow::Result<(Option<Cause>, Option<i32>)> {
        enter(&join)?;
        let calm = || start_processes(|rank, ()| anyhow::Ok(rank), (), by(method, 1))?.join();
        calm()?;
        let server = ForkServer::pid();
        // The kernel kills the largest of the cgroup, which neither the launcher nor the server is.
        let Err(Error::ProcessExited(exception)) = start_processes(|_, ()| eat(), (), by(method, 1))?.join()
        else {
            anyhow::bail!("not killed")
        };
        calm()?;
        anyhow::ensure!(ForkServer::pid() == server, "the server was hurt");
        Ok((exception.cause(), exception.exit_code()))
    }
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            let Some(group) = limited(200 << 20) else { return skipped(NO_MEMORY_GROUP) };
            let seen = start_processes(launch, (group.join_file(), method), Options::new(1)).unwrap().join();
            drop(group);
            let (cause, code) = seen.unwrap().remove(0);
            let in_group = matches!(cause, Some(Cause::OutOfMemory { kills: 1.., scope: OomScope::Cgroup }));
            assert!(in_group && code == Some(-9), "{method:?}: {cause:?} {code:?}");
        }
    });
}

/// Two workers in a group that they enter themselves, of which one needs too much memory; the launcher is elsewhere.
fn eat_elsewhere(group: &Group) -> phalanx::ProcessExitedException {
    let work = |rank: usize, (join, progress): (String, Tensor<i64>)| -> anyhow::Result<()> {
        enter(&join)?;
        post(&progress, rank, 1);
        await_post(&progress, 2);
        if rank == 1 { eat() } else { wait_for_ever() }
    };
    let progress = board(3);
    let arguments = (group.join_file(), progress.clone());
    let mut context = start_processes(work, arguments, Options::new(2)).unwrap();
    (0..2).for_each(|rank| assert_eq!(await_post(&progress, rank), 1));
    // While this waits it finds out where they are, which version 1 does not tell later.
    assert!(!context.join_timeout(SOON).unwrap());
    post(&progress, 2, 1);
    exited(common::poll_join(&mut context).unwrap_err())
}

#[test]
fn worker_killed_for_memory_in_a_group_of_its_own_is_told() {
    watched(|| {
        let Some(group) = limited(200 << 20) else { return skipped(NO_MEMORY_GROUP) };
        let exception = eat_elsewhere(&group);
        let told = exception.to_string();
        assert!(
            matches!(exception.cause(), Some(Cause::OutOfMemory { kills: 1.., scope: OomScope::Cgroup })),
            "{told}"
        );
        assert!(
            told.contains("out-of-memory kill(s) in its cgroup") && exception.error_index() == 1,
            "{told}"
        );
        // A kill by somebody else is not for memory, though there was one in that group.
        let work = |_, join: String| -> anyhow::Result<()> {
            enter(&join)?;
            common::kill_self()
        };
        let killed = start_processes(work, group.join_file(), Options::new(1)).unwrap().join();
        assert_eq!(exited(killed.unwrap_err()).cause(), None);
    });
}

#[test]
fn of_a_group_killed_as_a_whole_the_one_with_the_most_memory_is_to_blame() {
    watched(|| {
        let Some(group) = limited(200 << 20) else { return skipped(NO_MEMORY_GROUP) };
        if fs::write(group.dir.join("memory.oom.group"), "1").is_err() {
            return skipped("only version 2 kills whole groups");
        }
        let exception = eat_elsewhere(&group);
        assert_eq!(exception.error_index(), 1, "{exception}");
        for outcome in exception.outcomes() {
            let whole =
                matches!(outcome.cause(), Some(Cause::OutOfMemory { scope: OomScope::WholeCgroup, .. }));
            assert!(whole && !outcome.is_victim(), "{exception}");
            assert!(matches!(outcome.status(), Status::Signaled { .. }), "{exception}");
        }
    });
}

#[test]
fn more_memory_than_a_group_above_has_is_an_error_with_its_limit() {
    const LIMIT: u64 = 200 << 20;
    let ask = |_, join: String| -> anyhow::Result<String> {
        enter(&join)?;
        Ok(Tensor::<u8>::zeros(&[600_000_000]).unwrap_err().to_string())
    };
    watched(|| {
        let Some(group) = limited(LIMIT) else { return skipped(NO_MEMORY_GROUP) };
        let Some(leaf) = group.inner("leaf") else { return skipped(NO_MEMORY_GROUP) };
        for inside in [&leaf, &group] {
            if inside.is_v2 && inside.dir == group.dir {
                // It has groups inside, so no process may be in it.
                continue;
            }
            let told =
                start_processes(ask, inside.join_file(), Options::new(1)).unwrap().join().unwrap().remove(0);
            let limit = format!("{}/memory.", group.dir.display());
            assert!(told.contains(&limit) && told.contains(&format!(" is {LIMIT}, of which ")), "{told}");
        }
        drop(leaf);
    });
}

#[test]
fn more_processes_than_a_group_has_is_an_error_with_its_limit() {
    fn launch(_: usize, (join, limit, method): (String, String, StartMethod)) -> anyhow::Result<String> {
        enter(&join)?;
        if method == StartMethod::ForkServer {
            start_processes(|_, ()| anyhow::Ok(()), (), by(method, 1))?.join()?;
        }
        fs::write(limit, "3")?;
        let work = |_, ()| -> anyhow::Result<()> { wait_for_ever() };
        Ok(start_processes(work, (), by(method, 4)).unwrap_err().to_string())
    }
    watched(|| {
        for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer] {
            let Some(group) = Group::new("pids") else {
                return skipped("no cgroup of processes can be made here");
            };
            let limit = group.dir.join("pids.max").to_str().unwrap().to_owned();
            let arguments = (group.join_file(), limit.clone(), method);
            let told = start_processes(launch, arguments, Options::new(1)).unwrap().join().unwrap().remove(0);
            assert!(
                told.starts_with("cannot start rank ") && told.contains(&format!("{limit} is 3, of which 0")),
                "{told}"
            );
        }
    });
}
