//! The directory of named memory: removed by another program, with a name that is no text, made under a hostile umask.

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use common::{trees, watched};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgid, setuid};
use phalanx::shm::{get_sharing_directory, set_sharing_directory};
use phalanx::{Options, SharingStrategy, StartMethod, Tensor, set_sharing_strategy, spawn, start_processes};

phalanx::auto_init!();

/// Elements of a tensor of bytes that has a segment of its own.
const LARGE: usize = 300 << 10;

fn by_name() {
    set_sharing_strategy(SharingStrategy::FileSystem);
}

/// Those in which this process has named memory or could have it: it has their locks.
fn named_trees() -> BTreeSet<PathBuf> {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| trees().contains(target)).collect()
}

#[test]
fn removed_directory_is_told_and_another_one_is_begun() {
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        let sum = |_, tensor: Tensor<u8>| anyhow::Ok(tensor.get(0)?);
        by_name();
        let old = Tensor::<u8>::zeros(&[LARGE])?;
        let trees = named_trees();
        trees.iter().try_for_each(fs::remove_dir_all)?;
        let new = Tensor::<u8>::from_slice(&vec![7; LARGE], &[LARGE])?;
        anyhow::ensure!(spawn(sum, new, 2)? == [7, 7]);
        old.set(0, 5)?;
        anyhow::ensure!(old.get(0)? == 5, "what is mapped stays");
        let told = spawn(sum, old, 1).unwrap_err().to_string();
        let named = trees.iter().any(|tree| told.contains(&format!("{}", tree.display())));
        anyhow::ensure!(named && told.contains("was removed by another program"), "{told}");
        Ok(())
    }
    watched(|| {
        spawn(launch, (), 1).unwrap();
        assert!(trees().is_empty(), "{:?}", trees());
    });
}

#[test]
fn worker_whose_directory_is_removed_returns_named_memory_all_the_same() {
    fn work(_: usize, _: ()) -> anyhow::Result<Tensor<u8>> {
        named_trees().iter().try_for_each(fs::remove_dir_all)?;
        Ok(Tensor::from_slice(&vec![9; LARGE], &[LARGE])?)
    }
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        by_name();
        let result = spawn(work, (), 1)?.remove(0);
        anyhow::ensure!(result.get(LARGE - 1)? == 9);
        Ok(())
    }
    watched(|| {
        spawn(launch, (), 1).unwrap();
        assert!(trees().is_empty(), "{:?}", trees());
    });
}

#[test]
fn directory_whose_name_is_not_utf8_is_the_workers_too() {
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        let home = tempfile::tempdir()?;
        let directory = home.path().join(OsStr::from_bytes(b"d\xff"));
        fs::create_dir(&directory)?;
        set_sharing_directory(&directory)?;
        by_name();
        let tensor = Tensor::<f32>::zeros(&[4])?;
        let add = |_, tensor: Tensor<f32>| -> anyhow::Result<()> {
            tensor.fetch_add(0, 1.0)?;
            anyhow::ensure!(get_sharing_directory().ends_with(OsStr::from_bytes(b"d\xff")));
            Ok(())
        };
        for method in [StartMethod::Spawn, StartMethod::ForkServer] {
            start_processes(add, tensor.clone(), Options::new(2).start_method(method))?.join()?;
        }
        anyhow::ensure!(tensor.get(0)? == 4.0);
        drop(tensor);
        // The tree in it goes when this process exits; the test's own directory goes after that.
        std::mem::forget(home);
        Ok(())
    }
    watched(|| {
        let home = tempfile::tempdir().unwrap();
        let options = Options::new(1).env("TMPDIR", home.path().to_str().unwrap());
        start_processes(launch, (), options).unwrap().join().unwrap();
        assert!(trees().is_empty(), "{:?}", trees());
    });
}

#[test]
fn umask_that_takes_the_owners_rights_does_no_harm() {
    fn launch(_: usize, _: ()) -> anyhow::Result<()> {
        let (nobody, group) = (Uid::from_raw(65534), Gid::from_raw(65534));
        if Uid::effective().is_root() {
            // Whom the modes of files do not hold up.
            setgid(group)?;
            setuid(nobody)?;
        }
        umask(Mode::from_bits_truncate(0o777));
        by_name();
        let tensor = Tensor::<u8>::from_slice(&vec![3; LARGE], &[LARGE])?;
        let sum = |_, tensor: Tensor<u8>| anyhow::Ok(tensor.get(LARGE - 1)?);
        anyhow::ensure!(spawn(sum, tensor, 1)? == [3]);
        Ok(())
    }
    watched(|| {
        spawn(launch, (), 1).unwrap();
        assert!(trees().is_empty(), "{:?}", trees());
    });
}
