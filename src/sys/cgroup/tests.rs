//! Control groups as files below a directory.

use std::fs;

use super::*;

const V1: &str = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                  31 25 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
const V2: &str = "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

/// A root directory with these files in it.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::Builder::new().prefix("cgroup-test").tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn group(root: &tempfile::TempDir, controller: &'static str) -> Option<Group> {
    Hierarchy::find(root.path(), controller)?.group_of("self")
}

fn left(root: &tempfile::TempDir) -> Option<(u64, String)> {
    let room = group(root, "memory")?.memory()?;
    let file = room.file.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned();
    Some((room.left, file))
}

#[test]
fn limit_of_a_group_above_counts_in_version_2() {
    let root = tree(&[
        ("proc/self/mountinfo", V2),
        ("proc/self/cgroup", "0::/job/leaf\n"),
        ("sys/fs/cgroup/job/memory.max", "1000\n"),
        ("sys/fs/cgroup/job/memory.high", "max\n"),
        ("sys/fs/cgroup/job/memory.current", "700\n"),
        ("sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 100\nactive_file 20\n"),
        ("sys/fs/cgroup/job/leaf/memory.max", "max\n"),
        ("sys/fs/cgroup/job/leaf/memory.current", "600\n"),
    ]);
    assert_eq!(left(&root), Some((420, "sys/fs/cgroup/job/memory.max".into())));
    // What is throttled there comes to a standstill.
    fs::write(root.path().join("sys/fs/cgroup/job/leaf/memory.high"), "650\n").unwrap();
    assert_eq!(left(&root), Some((50, "sys/fs/cgroup/job/leaf/memory.high".into())));
}

#[test]
fn limit_of_a_group_above_counts_in_version_1_where_there_is_a_hierarchy() {
    let root = tree(&[
        ("proc/self/mountinfo", V1),
        ("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/leaf\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "5000\n"),
        ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000\n"),
        ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "900\n"),
        (
            "sys/fs/cgroup/memory/a/memory.stat",
            "active_file 9\ntotal_inactive_file 30\ntotal_active_file 20\n",
        ),
        ("sys/fs/cgroup/memory/a/leaf/memory.limit_in_bytes", "9223372036854771712\n"),
        ("sys/fs/cgroup/memory/a/leaf/memory.usage_in_bytes", "300\n"),
    ]);
    assert_eq!(left(&root), Some((150, "sys/fs/cgroup/memory/a/memory.limit_in_bytes".into())));
    fs::write(root.path().join("sys/fs/cgroup/memory/a/memory.use_hierarchy"), "0\n").unwrap();
    assert_eq!(left(&root), None);
}

#[test]
fn container_without_a_namespace_has_its_group_at_the_mount_point() {
    let mounted = "30 25 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
    let files = |mountinfo, cgroup| {
        tree(&[
            ("proc/self/mountinfo", mountinfo),
            ("proc/self/cgroup", cgroup),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600\n"),
            ("sys/fs/cgroup/memory/memory.stat", "hierarchical_memory_limit 800\n"),
            ("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "100\n"),
            ("sys/fs/cgroup/memory/inner/memory.usage_in_bytes", "90\n"),
        ])
    };
    // The limit of the group above, which cannot be seen, is the lower one.
    let at_top = Some((200, "sys/fs/cgroup/memory/memory.stat".into()));
    assert_eq!(left(&files(mounted, "4:memory:/docker/abc\n")), at_top);
    let inner = Some((10, "sys/fs/cgroup/memory/inner/memory.limit_in_bytes".into()));
    assert_eq!(left(&files(mounted, "4:memory:/docker/abc/inner\n")), inner);
    // Mounted by a manager that hides where it is.
    assert_eq!(left(&files(V1, "4:memory:/docker/abc\n")), at_top);
    assert_eq!(left(&files(mounted, "4:memory:/\n")), at_top);
}

#[test]
fn processes_are_limited_at_every_level() {
    let root = tree(&[
        ("proc/self/mountinfo", V1),
        ("proc/self/cgroup", "8:pids:/a/leaf\n"),
        ("sys/fs/cgroup/pids/a/pids.max", "10\n"),
        ("sys/fs/cgroup/pids/a/pids.current", "10\n"),
        ("sys/fs/cgroup/pids/a/leaf/pids.max", "max\n"),
        ("sys/fs/cgroup/pids/a/leaf/pids.current", "4\n"),
    ]);
    let room = group(&root, "pids").unwrap().processes().unwrap();
    assert!(room.to_string().ends_with("sys/fs/cgroup/pids/a/pids.max is 10, of which 0 are left"), "{room}");
}

#[test]
fn kills_are_those_of_the_group_itself() {
    let root = tree(&[
        ("proc/self/mountinfo", V2),
        ("proc/self/cgroup", "0::/job/leaf:x\n"),
        ("sys/fs/cgroup/job/memory.events.local", "oom_kill 0\noom_group_kill 0\n"),
        ("sys/fs/cgroup/job/leaf:x/memory.events", "oom 5\noom_kill 7\n"),
        ("sys/fs/cgroup/job/leaf:x/memory.events.local", "oom 2\noom_kill 3\noom_group_kill 0\n"),
    ]);
    let told = || group(&root, "memory").map(|group| (group.oom_kills(), group.kills_as_a_whole()));
    assert_eq!(told(), Some((Some(3), 0)));
    fs::write(root.path().join("sys/fs/cgroup/job/memory.events.local"), "oom_kill 0\noom_group_kill 1\n")
        .unwrap();
    assert_eq!(told(), Some((Some(3), 1)));
    let one = tree(&[
        ("proc/self/mountinfo", V1),
        ("proc/self/cgroup", "4:memory:/a\n"),
        ("sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 42\n"),
    ]);
    assert_eq!(group(&one, "memory").unwrap().oom_kills(), Some(42));
}

#[test]
fn what_is_not_there_or_garbage_is_nothing() {
    assert_eq!(group(&tree(&[]), "memory"), None);
    assert_eq!(
        group(&tree(&[("proc/self/mountinfo", "x - cgroup2\n1 2 3 - cgroup a memory\n")]), "memory"),
        None
    );
    let bare = tree(&[("proc/self/mountinfo", V2), ("proc/self/cgroup", "garbage\n0::/a\n")]);
    let bare = group(&bare, "memory").unwrap();
    assert_eq!((bare.memory(), bare.oom_kills(), bare.processes()), (None, None, None));
}

#[test]
fn names_with_spaces_are_read() {
    assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
}

#[test]
fn number_after_key_at_line_start_only() {
    let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 42\n";
    assert_eq!(number_after(text, "oom_kill "), Some(42));
    assert_eq!(number_after(text, "oom "), None);
}
