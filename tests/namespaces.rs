//! Launchers whose children go into another namespace than they are in themselves.

mod common;

use common::{by, watched};
use nix::sched::{CloneFlags, unshare};
use phalanx::{Error, StartMethod, spawn, start_processes};

phalanx::auto_init!();

/// CLONE_NEWTIME of linux/sched.h, which nix does not have.
const NEW_TIME: i32 = 0x80;

/// What a launcher says that has unshared; an empty text where it may not.
fn launch(_: usize, (kind, method): (i32, StartMethod)) -> anyhow::Result<String> {
    let kind = CloneFlags::from_bits_retain(kind);
    // Without root it takes a user namespace.
    if unshare(kind).or_else(|_| unshare(kind | CloneFlags::CLONE_NEWUSER)).is_err() {
        return Ok(String::new());
    }
    match start_processes(|_, ()| anyhow::Ok(()), (), by(method, 2)) {
        Err(error @ Error::ForeignNamespace { .. }) => Ok(error.to_string()),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "what was not tested is said")]
fn launcher_whose_children_are_in_another_namespace_is_refused() {
    watched(|| {
        for (kind, name) in [(CloneFlags::CLONE_NEWPID.bits(), "PID"), (NEW_TIME, "time")] {
            for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer] {
                let told = spawn(launch, (kind, method), 1).unwrap().remove(0);
                if told.is_empty() {
                    println!("not tested: this system gives no new {name} namespace");
                } else {
                    let expected = format!("go into another {name} namespace");
                    assert!(told.contains(&expected) && told.contains("`unshare --fork`"), "{told}");
                }
            }
        }
    });
}
