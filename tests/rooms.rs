//! Holds the `use crate::…` lines of `src` against the table of rooms in docs/architecture.md.

use std::fs;
use std::path::Path;

/// A room, and the rooms that it may use. Imports only point down.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("guide", &[]),
    ("sys", &[]),
    ("encoding", &[]),
    ("error", &["sys"]),
    ("shm", &["sys", "error"]),
    ("wire", &["encoding", "shm", "sys", "error"]),
    ("sync", &["wire", "shm", "sys", "error"]),
    ("supervise", &["wire", "shm", "sys", "error"]),
    ("worker", &["wire", "shm", "sys", "error"]),
    ("start", &["supervise", "worker", "wire", "shm", "sys", "error"]),
    ("queue", &["sync", "wire", "shm", "sys", "error"]),
    ("context", &["queue", "start", "supervise", "worker", "wire", "shm", "sys", "error"]),
    ("init", &["start", "supervise", "worker", "wire", "shm", "sys", "error"]),
];

/// Where `unsafe` may stand outside of `sys`.
const UNSAFE_OUTSIDE_SYS: [&str; 8] = [
    "worker/entry.rs",
    "shm/access.rs",
    "shm/shard.rs",
    "sync/lock.rs",
    "sync/rwlock.rs",
    "shm/formats/ndarray.rs",
    "shm/formats/dlpack.rs",
    "shm/formats/exchange.rs",
];

/// Where the process may be ended.
const MAY_EXIT: [&str; 4] = ["worker/run.rs", "start/server.rs", "init.rs", "sys/process.rs"];

struct Source {
    path: String,
    room: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(found.len() > 30, "only {} files", found.len());
    found
}

fn collect(root: &Path, dir: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let room = name.split(['/', '.']).next().unwrap().to_owned();
        found.push(Source { room, text: code_of(&fs::read_to_string(&path).unwrap()), path: name });
    }
}

/// The text without comments and unit tests.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn imports_only_point_down() {
    for source in sources().iter().filter(|source| source.room != "lib") {
        let rooms = ALLOWED.iter().find(|(room, _)| *room == source.room);
        let (_, below) = rooms.unwrap_or_else(|| panic!("{} stands in no known room", source.path));
        for used in source.text.split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            // `crate::Error` and the like are the public names, which the docs of lower rooms refer to.
            let is_room = ALLOWED.iter().any(|(room, _)| *room == used);
            let fine = !is_room || used == source.room || below.contains(&used.as_str());
            assert!(fine, "{} uses {used}, which is not below {}", source.path, source.room);
        }
    }
}

#[test]
fn only_sys_calls_the_system() {
    for source in sources().iter().filter(|source| source.room != "sys") {
        for library in ["libc", "nix", "memmap2", "signal_hook"] {
            let uses = source.text.match_indices(&format!("{library}::")).any(|(at, _)| {
                !source.text[..at]
                    .ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':')
            });
            assert!(!uses, "{} uses {library}", source.path);
        }
    }
}

#[test]
fn unsafe_has_an_address_and_each_its_reason() {
    for source in sources() {
        let blocks = source.text.matches("unsafe {").count() + source.text.matches("unsafe fn").count();
        let at_home = source.room == "sys" || UNSAFE_OUTSIDE_SYS.contains(&source.path.as_str());
        assert!(blocks == 0 || at_home, "{} has unsafe code", source.path);
    }
}

#[test]
fn only_a_few_places_end_the_process() {
    for source in sources() {
        let ends =
            ["process::exit(", "exit_at_once(", "libc::_exit("].iter().any(|call| source.text.contains(call));
        let fine = !ends || MAY_EXIT.contains(&source.path.as_str()) || source.path == "sys/signal.rs";
        assert!(fine, "{} ends the process", source.path);
    }
}

#[test]
fn the_crate_root_holds_no_code() {
    let root = sources().into_iter().find(|source| source.path == "lib.rs").unwrap();
    for line in root.text.lines().filter(|line| !line.trim().is_empty()) {
        let plain = ["mod ", "pub use ", "pub mod ", "#[", "#![", "    ", "};"]
            .iter()
            .any(|start| line.starts_with(start));
        assert!(plain, "lib.rs: {line}");
    }
}

/// rustdoc shows the pages too (`phalanx::guide`), where a file's name leads nowhere: `links.md` gives the references their
/// targets.
#[test]
fn pages_link_to_each_other_by_references_that_rustdoc_knows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = fs::read_to_string(root.join("src/guide/links.md")).unwrap();
    for dir in ["docs", "docs/howto"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let leads = target.starts_with('#') || target.contains("://");
                assert!(leads, "{}: write [text][{target}], and define it below", path.display());
            }
            let defined =
                text.lines().filter(|line| line.starts_with('[')).filter_map(|line| line.split_once("]: "));
            for (name, _) in defined {
                assert!(known.contains(&format!("{name}]: ")), "src/guide/links.md does not have {name}]");
            }
        }
    }
}

#[test]
fn architecture_document_names_every_file() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let document = fs::read_to_string(document).unwrap();
    for source in sources() {
        let name = source.path.rsplit('/').next().unwrap();
        assert!(document.contains(name), "docs/architecture.md does not name src/{}", source.path);
    }
}
