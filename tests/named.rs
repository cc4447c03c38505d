//! Named memory: who removes what, whoever is killed when. This process has none itself, so each of its workers begins a
//! tree of its own.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{
    await_post, await_that, board, kill_self, named_memory, post, race_time, skipped, trees, wait_for_ever,
    watched,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use phalanx::shm::{get_sharing_directory, set_sharing_directory};
use phalanx::{
    MemoryError, Options, ProcessContext, SharingStrategy, Tensor, get_sharing_strategy,
    set_sharing_strategy, spawn, start_processes,
};

phalanx::auto_init!();

/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

fn by_name() {
    set_sharing_strategy(SharingStrategy::FileSystem);
}

/// Begins a tree, which removes those that are dead.
fn sweep() {
    let begin = |_, ()| -> Result<(), MemoryError> {
        by_name();
        Tensor::<u8>::zeros(&[1]).map(drop)
    };
    spawn(begin, (), 1).unwrap();
}

#[test]
fn tree_goes_with_its_launcher_and_storages_with_their_holders() {
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        by_name();
        let tensors = (0..3).map(|_| Tensor::<u8>::zeros(&[LARGE])).collect::<Result<Vec<_>, _>>()?;
        let small = Tensor::<u8>::zeros(&[10])?;
        anyhow::ensure!(named_memory().len() == 4, "{:?}", named_memory());
        let look = |_, _: Vec<Tensor<u8>>| anyhow::Ok(named_memory().len());
        // Ours, and in a directory of the worker's, its names of those that it was given.
        anyhow::ensure!(spawn(look, tensors.clone(), 1)? == [4 + 1 + 3], "in a worker");
        anyhow::ensure!(named_memory().len() == 4, "{:?}", named_memory());
        drop((tensors, small));
        anyhow::ensure!(named_memory().is_empty(), "{:?}", named_memory());
        // Of this nobody drops anything.
        std::mem::forget(Tensor::<u8>::zeros(&[LARGE])?);
        Ok(())
    }
    watched(|| {
        spawn(launch, (), 1).unwrap();
        assert!(trees().is_empty(), "{:?}", trees());
    });
}

#[test]
fn nobody_else_may_enter_and_names_cannot_be_guessed() {
    watched(|| {
        let look = |_, ()| -> anyhow::Result<()> {
            by_name();
            let _held = Tensor::<u8>::zeros(&[LARGE])?;
            let tree = trees().into_iter().next().unwrap();
            let name = tree.file_name().unwrap().to_str().unwrap().to_owned();
            anyhow::ensure!(name.len() == "phalanx-".len() + 32, "{name}");
            anyhow::ensure!(fs::metadata(&tree)?.permissions().mode() & 0o7777 == 0o700);
            let file = named_memory().into_iter().next().unwrap();
            anyhow::ensure!(fs::metadata(file)?.permissions().mode() & 0o7777 == 0o600);
            Ok(())
        };
        spawn(look, (), 1).unwrap();
    });
}

#[test]
fn killed_worker_leaves_nothing_when_it_is_reaped() {
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        by_name();
        let (given, ready) = (Tensor::<u8>::zeros(&[LARGE])?, board(1));
        let die = |_, (given, ready): (Tensor<u8>, Tensor<i64>)| -> anyhow::Result<()> {
            let own = Tensor::<u8>::zeros(&[LARGE])?;
            // A worker of its own has names in its directory.
            let stay = |_, (_given, ready): (Tensor<u8>, Tensor<i64>)| -> anyhow::Result<()> {
                post(&ready, 0, 1);
                wait_for_ever()
            };
            let _inner = start_processes(stay, (own.clone(), ready.clone()), Options::new(1))?;
            await_post(&ready, 0);
            given.set(0, 1)?;
            kill_self()
        };
        anyhow::ensure!(spawn(die, (given.clone(), ready.clone()), 1).is_err());
        anyhow::ensure!(given.get(0)? == 1);
        drop((given, ready));
        // Its own worker, which dies a moment later, may have made something in between: that goes with the tree.
        anyhow::ensure!(
            named_memory().iter().all(|path| !fs::metadata(path).is_ok_and(|file| file.is_file()))
        );
        Ok(())
    }
    watched(|| {
        spawn(launch, (), 1).unwrap();
        assert!(trees().is_empty());
    });
}

/// A launcher of two workers that make, give and return named memory all the time.
fn churn(_: usize, _: ()) -> anyhow::Result<()> {
    by_name();
    let work = |_, given: Vec<Tensor<u8>>| -> anyhow::Result<Vec<Tensor<u8>>> {
        let made = (0..3).map(|_| Tensor::<u8>::zeros(&[LARGE])).collect::<Result<Vec<_>, _>>()?;
        Ok(given.into_iter().chain(made).collect())
    };
    let mut tensors = vec![Tensor::<u8>::zeros(&[LARGE])?, Tensor::<u8>::zeros(&[5])?];
    loop {
        tensors = spawn(work, tensors, 2)?.into_iter().flatten().take(5).collect();
    }
}

/// Kills a launcher after `moment` of its work.
fn kill_after(moment: Duration) {
    let mut context = start_processes(churn, (), Options::new(1).daemon(true)).unwrap();
    assert!(!context.join_timeout(moment).unwrap());
    context.kill().unwrap();
    assert!(context.join().is_err());
}

#[test]
fn whole_tree_killed_at_any_moment_leaves_nothing_after_the_next_start() {
    watched(|| {
        let end = Instant::now() + race_time();
        let (mut round, mut left) = (0, 0);
        while Instant::now() < end || left == 0 {
            round += 1;
            // Moments that the golden ratio spreads evenly.
            kill_after(Duration::from_micros(
                (f64::from(round) * 0.618_033_988_75).fract().mul_add(60_000.0, 1.0) as u64,
            ));
            left += trees().len();
            // The workers die a moment after their launcher, and hold the tree until then.
            await_that(|| {
                sweep();
                trees().is_empty()
            });
        }
    });
}

/// Holds named memory until told.
fn hold(_: usize, board: Tensor<i64>) -> anyhow::Result<()> {
    by_name();
    let held = Tensor::from_slice(&vec![7_u8; LARGE], &[LARGE])?;
    post(&board, 0, 1);
    await_post(&board, 1);
    // Its names are there still: it can be given to a worker.
    let read = |_, held: Tensor<u8>| anyhow::Ok(held.get(LARGE - 1)?);
    anyhow::ensure!(spawn(read, held, 1)? == [7]);
    Ok(())
}

fn start_holder(board: &Tensor<i64>) -> ProcessContext<()> {
    let context = start_processes(hold, board.clone(), Options::new(1)).unwrap();
    await_post(board, 0);
    context
}

#[test]
fn unrelated_trees_do_not_touch_each_other() {
    watched(|| {
        let (board_a, board_b) = (board(2), board(2));
        let tree_a = start_holder(&board_a);
        let before = trees();
        let mut tree_b = start_holder(&board_b);
        assert_eq!(trees().len(), 2);
        tree_b.kill().unwrap();
        assert!(tree_b.join().is_err());
        assert_eq!(trees().len(), 2);
        sweep();
        assert_eq!(trees(), before);
        post(&board_a, 1, 1);
        tree_a.join().unwrap();
        assert!(trees().is_empty());
    });
}

#[test]
fn nothing_of_another_user_is_followed_or_touched() {
    const OTHER: u32 = 65_534;
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can make another user's files");
        return;
    }
    watched(|| {
        let kept = tempfile::tempdir().unwrap();
        fs::write(kept.path().join("kept"), "x").unwrap();
        let named = |number: u32| get_sharing_directory().join(format!("phalanx-{number:032x}"));
        let [theirs, open, link, file] = [1, 2, 3, 4].map(named);
        let [theirs, open, link, file] = [&theirs, &open, &link, &file];
        fs::create_dir(theirs).unwrap();
        fs::set_permissions(theirs, PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(theirs.join("s1"), "x").unwrap();
        std::os::unix::fs::chown(theirs, Some(OTHER), Some(OTHER)).unwrap();
        fs::create_dir(open).unwrap();
        fs::set_permissions(open, PermissionsExt::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink(kept.path(), link).unwrap();
        fs::write(file, "x").unwrap();
        sweep();
        let there = (theirs.join("s1").exists(), open.exists(), link.is_symlink(), file.exists());
        let kept = kept.path().join("kept").exists();
        for path in [theirs, open] {
            fs::remove_dir_all(path).unwrap();
        }
        for path in [link, file] {
            fs::remove_file(path).unwrap();
        }
        assert_eq!((there, kept), ((true, true, true, true), true));
    });
}

#[test]
fn worker_shares_as_its_launcher_does_and_in_the_same_place() {
    fn launch(_: usize, dir: PathBuf) -> anyhow::Result<()> {
        set_sharing_directory(&dir)?;
        by_name();
        let look = |_, ()| -> anyhow::Result<(SharingStrategy, PathBuf, Tensor<u8>)> {
            Ok((get_sharing_strategy(), get_sharing_directory(), Tensor::zeros(&[LARGE])?))
        };
        let (strategy, seen, tensor) = spawn(look, (), 1)?.remove(0);
        anyhow::ensure!((strategy, &seen) == (SharingStrategy::FileSystem, &dir));
        let inode = fs::metadata(file_below(&dir))?.ino();
        anyhow::ensure!(tensor.storage_id().to_string().contains(&format!(":{inode}+")));
        // Too late to move.
        let error = set_sharing_directory("/dev/shm").unwrap_err().to_string();
        anyhow::ensure!(error.contains("already has named memory in"), "{error}");
        Ok(())
    }
    watched(|| {
        let dir = tempfile::tempdir().unwrap();
        spawn(launch, dir.path().to_owned(), 1).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let error = set_sharing_directory("/no/such/dir").unwrap_err().to_string();
        assert!(error.starts_with("cannot use /no/such/dir for named memory:"), "{error}");
        assert!(set_sharing_directory("/dev/null").is_err());
    });
}

/// The one file below a directory.
fn file_below(dir: &Path) -> PathBuf {
    let entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let file = entries.iter().find(|path| path.is_file());
    file.cloned().unwrap_or_else(|| file_below(entries.iter().find(|path| path.is_dir()).unwrap()))
}

#[test]
fn worker_that_outlives_its_launcher_keeps_what_it_was_given_and_can_begin_a_tree_of_its_own() {
    fn outlive(_: usize, (given, board): (Tensor<u8>, Tensor<i64>)) -> anyhow::Result<()> {
        post(&board, 0, std::process::id());
        await_post(&board, 1);
        let read = |_, tensors: [Tensor<u8>; 2]| anyhow::Ok((tensors[0].get(0)?, tensors[1].len()));
        let seen = spawn(read, [given, Tensor::zeros(&[LARGE])?], 1)?;
        anyhow::ensure!(seen == [(4, LARGE)], "{seen:?}");
        post(&board, 2, 1);
        Ok(())
    }
    fn launch(_: usize, (depth, board): (u32, Tensor<i64>)) -> anyhow::Result<()> {
        by_name();
        if depth > 0 {
            spawn(launch, (depth - 1, board), 1)?;
            return Ok(());
        }
        let given = Tensor::from_slice(&vec![4_u8; LARGE], &[LARGE])?;
        // It may not have reached its first instruction when its launcher is gone.
        start_processes(outlive, (given, board), Options::new(1).death_signal(None))?.detach()?;
        Ok(())
    }
    watched(|| {
        for depth in [0, 0, 0, 1] {
            let board = board(3);
            spawn(launch, (depth, board.clone()), 1).unwrap();
            assert!(trees().is_empty(), "{:?}", trees());
            post(&board, 1, 1);
            common::await_end(await_post(&board, 0));
            assert_eq!(await_post(&board, 2), 1);
            assert!(trees().is_empty(), "{:?}", trees());
        }
    });
}

#[test]
fn shared_memory_is_not_taken_for_a_file_of_data() {
    fn look(_: usize, _: ()) -> anyhow::Result<()> {
        by_name();
        let _held = Tensor::<u8>::zeros(&[LARGE])?;
        let file = named_memory().into_iter().next().unwrap();
        let fifo = tempfile::tempdir()?;
        let pipe = fifo.path().join("fifo");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU)?;
        set_sharing_strategy(SharingStrategy::FileDescriptor);
        let _memfd = Tensor::<u8>::zeros(&[LARGE])?;
        let (number, _) =
            common::descriptors().into_iter().find(|(_, target)| target.contains("phalanx-storage")).unwrap();
        for (path, why) in [
            (PathBuf::from(file), "shared memory of some process"),
            (PathBuf::from(format!("/proc/self/fd/{number}")), "shared memory of some process"),
            (pipe, "no regular file"),
        ] {
            let error = phalanx::Storage::from_file(&path).unwrap_err().to_string();
            anyhow::ensure!(error.contains(why), "{error}");
        }
        Ok(())
    }
    watched(|| drop(spawn(look, (), 1).unwrap()));
}

#[test]
fn named_memory_in_the_result_of_another_tree_arrives() {
    watched(|| {
        let make = |_, ()| -> anyhow::Result<(Tensor<u8>, Tensor<u8>)> {
            by_name();
            let large = Tensor::from_slice(&vec![8; LARGE], &[LARGE])?;
            Ok((large, Tensor::from_slice(&[9], &[1])?))
        };
        let (large, small) = spawn(make, (), 1).unwrap().remove(0);
        assert!(trees().is_empty());
        assert_eq!((large.get(LARGE - 1).unwrap(), small.get(0).unwrap()), (8, 9));
        // And can be sent on.
        let write = |_, large: Tensor<u8>| large.set(0, 10);
        spawn(write, large.clone(), 2).unwrap();
        assert_eq!(large.get(0).unwrap(), 10);
    });
}

/// A tmpfs of its own, or `None` where that is not allowed.
struct SmallTmpfs(tempfile::TempDir);

impl SmallTmpfs {
    fn new(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes},mode=700");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str()));
        mounted.is_ok().then_some(Self(dir))
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::empty()).unwrap();
    }
}

#[test]
fn full_file_system_is_an_error_with_numbers_and_never_sigbus() {
    fn fill_up(_: usize, dir: PathBuf) -> anyhow::Result<(Vec<String>, usize)> {
        set_sharing_directory(&dir)?;
        by_name();
        let first = Tensor::from_slice(&vec![1_u8; 2 << 20], &[2 << 20])?;
        let large = Tensor::<u8>::zeros(&[3 << 20]).unwrap_err().to_string();
        let mut small = Vec::new();
        let full = loop {
            match Tensor::from_slice(&[2_u8; 100 << 10], &[100 << 10]) {
                Ok(tensor) => small.push(tensor),
                Err(error) => break error.to_string(),
            }
        };
        // Every byte that was given is there.
        for tensor in small.iter().chain([&first]) {
            tensor.write_from(&vec![3; tensor.len()])?;
        }
        let count = small.len();
        drop(small);
        Tensor::from_slice(&vec![1_u8; 1 << 20], &[1 << 20])?;
        Ok((vec![large, full], count))
    }
    watched(|| {
        let Some(tmpfs) = SmallTmpfs::new(4 << 20) else {
            skipped("mounting a tmpfs is not allowed here");
            return;
        };
        let (errors, small) = spawn(fill_up, tmpfs.0.path().to_owned(), 1).unwrap().remove(0);
        let place = format!(" are available in {}", tmpfs.0.path().display());
        assert!(errors[0].starts_with("cannot get 3.0 MiB (3145728 bytes) for a tensor of "), "{errors:?}");
        assert!(errors.iter().all(|error| error.ends_with(&place)), "{errors:?}");
        assert!((10..=20).contains(&small), "{small} small ones");
        assert_eq!(fs::read_dir(tmpfs.0.path()).unwrap().count(), 0);
    });
}

#[test]
fn results_wait_for_room_when_a_user_has_too_many_descriptors_on_their_way() {
    fn launch(_: usize, _: ()) -> anyhow::Result<usize> {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 100, 1000)?;
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534))?;
        let make = |_, ()| (0..40).map(|_| Tensor::<u8>::zeros(&[LARGE])).collect::<Result<Vec<_>, _>>();
        let context = start_processes(make, (), Options::new(8))?;
        // What is on its way counts against the user's limit of descriptors until it is received.
        std::iter::repeat_with(std::thread::yield_now).take(20_000).for_each(drop);
        Ok(context.join()?.iter().map(Vec::len).sum())
    }
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can become another user");
        return;
    }
    watched(|| assert_eq!(spawn(launch, (), 1).unwrap(), [320]));
}
