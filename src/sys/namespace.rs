//! namespaces(7): those that a thread's children will be in, and it is not.

use std::io;
use std::path::PathBuf;

/// The kind of a namespace that the children of the calling thread enter while it stays outside, as after unshare(2) or
/// setns(2) with CLONE_NEWPID or CLONE_NEWTIME.
pub(crate) fn of_children_only() -> Option<&'static str> {
    ["PID", "time"].into_iter().find(|kind| {
        let name = kind.to_lowercase();
        differ(link(&name), link(&format!("{name}_for_children")))
    })
}

fn link(name: &str) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/thread-self/ns/{name}"))
}

/// Without the first this kernel has no such namespaces. Without the second, the children's has no process yet.
fn differ(own: io::Result<PathBuf>, of_children: io::Result<PathBuf>) -> bool {
    match (own, of_children) {
        (Ok(own), Ok(of_children)) => own != of_children,
        (Ok(_), Err(error)) => error.kind() == io::ErrorKind::NotFound,
        (Err(_), _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_without_a_process_yet_are_elsewhere() {
        let at = |number: u32| Ok(PathBuf::from(format!("pid:[{number}]")));
        let error = |kind: io::ErrorKind| Err(kind.into());
        assert!(!differ(at(1), at(1)));
        assert!(differ(at(1), at(2)));
        assert!(differ(at(1), error(io::ErrorKind::NotFound)));
        assert!(!differ(at(1), error(io::ErrorKind::PermissionDenied)));
        assert!(!differ(error(io::ErrorKind::NotFound), error(io::ErrorKind::NotFound)));
        assert_eq!(of_children_only(), None);
    }
}
