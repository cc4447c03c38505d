//! Holds the `use crate::…` lines of `src` against the table of rooms in docs/architecture.md.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

/// A room, and the rooms that it may use. Imports only point down. The name of a room is that of a folder or a file of `src`.
const ALLOWED: [(&str, &[&str]); 26] = [
    ("guide", &[]),
    ("dtype", &[]),
    ("cluster", &[]),
    ("point", &[]),
    ("sys", &["point"]),
    ("encoding", &[]),
    ("error", &["sys", "dtype"]),
    ("reactor", &["sys"]),
    ("memory", &["sys", "error"]),
    ("injection", &["point", "memory", "sys", "error"]),
    ("fault", &["injection", "point", "sys", "error"]),
    ("transfer", &["memory", "sys", "error", "dtype"]),
    ("tensor", &["transfer", "memory", "sys", "error", "dtype"]),
    ("shm", &["tensor", "memory", "dtype"]),
    ("wire", &["encoding", "transfer", "memory", "sys", "error"]),
    ("sync", &["point", "wire", "transfer", "memory", "sys", "error"]),
    ("collective", &["sync", "tensor", "wire", "transfer", "memory", "sys", "error", "dtype"]),
    ("supervise", &["wire", "transfer", "memory", "sys", "error"]),
    ("worker", &["injection", "point", "wire", "transfer", "memory", "sys", "error"]),
    (
        "launch",
        &["injection", "start", "worker", "supervise", "wire", "tensor", "memory", "sys", "error", "dtype"],
    ),
    // A crate of its own, which sees what every user of the library sees.
    ("bin", &[]),
    ("start", &["supervise", "worker", "wire", "transfer", "memory", "sys", "error"]),
    ("queue", &["point", "reactor", "sync", "wire", "transfer", "memory", "sys", "error"]),
    (
        "pool",
        &[
            "context",
            "point",
            "queue",
            "reactor",
            "sync",
            "start",
            "supervise",
            "worker",
            "wire",
            "transfer",
            "memory",
            "sys",
            "error",
        ],
    ),
    (
        "context",
        &[
            "injection",
            "queue",
            "reactor",
            "start",
            "supervise",
            "worker",
            "wire",
            "transfer",
            "memory",
            "sys",
            "error",
        ],
    ),
    ("init", &["launch", "start", "supervise", "worker", "wire", "transfer", "memory", "sys", "error"]),
];

/// Single files that may use one more room.
const EXCEPTIONS: [(&str, &str); 2] = [
    // `Value` and `Array` are tensors that order memory.
    ("sync/value.rs", "tensor"),
    // It is compiled for the tests and the fuzzer alone.
    ("queue/hostile.rs", "tensor"),
];

/// Where `unsafe` may stand outside of `sys`.
const UNSAFE_OUTSIDE_SYS: [&str; 10] = [
    "worker/entry.rs",
    // The linker's list of fault points. `sys` has points itself, so they lie below it.
    "point.rs",
    "tensor/access.rs",
    // The one line that says of a cell that it is an atomic.
    "tensor/cells.rs",
    "tensor/shard.rs",
    "sync/lock.rs",
    "sync/rwlock.rs",
    "tensor/formats/ndarray.rs",
    "tensor/formats/dlpack.rs",
    "tensor/formats/exchange.rs",
];

/// Where the process may be ended.
const MAY_EXIT: [&str; 8] = [
    "worker/run.rs",
    // Where a plan of faults asks for it.
    "injection/act.rs",
    // Where a trial's own process hangs.
    "fault/hang.rs",
    "start/server.rs",
    // A process that waits for its work ends where there is none.
    "start/spares.rs",
    "init.rs",
    "launch/guardian.rs",
    "sys/fork.rs",
];

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

/// Without the imports that only rustdoc or the tests see.
fn without_conditional_imports(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((at, condition)) =
        ["#[cfg(test)]\n", "#[cfg(doc)]\n"].iter().filter_map(|c| Some((rest.find(c)?, *c))).min()
    {
        kept.push_str(&rest[..at]);
        rest = rest[at + condition.len()..].trim_start();
        if rest.starts_with("use ") || rest.starts_with("pub(crate) use ") {
            rest = rest.split_once(';').unwrap().1;
        }
    }
    kept + rest
}

/// All paths that a file names from `crate` or `super` on, in `use` lines (whose braces are taken apart) and elsewhere.
fn paths_of(source: &Source) -> Vec<Vec<String>> {
    let text = without_conditional_imports(&source.text);
    let module = module_of(&source.path);
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let before = &text[..at];
            if before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
                continue;
            }
            // One more `super` at the begin, and one level up, for each of them.
            let mut base: Vec<String> = Vec::new();
            let mut rest = &text[at + start.len()..];
            if start == "super::" {
                base.clone_from(&module);
                base.pop();
                while let Some(further) = rest.strip_prefix("super::") {
                    base.pop();
                    rest = further;
                }
            }
            expand(&base, rest, &mut found);
        }
    }
    // `use child::Name` of a module's own children. (What it re-exports is no import: see `re_exports`.)
    for (at, _) in text.match_indices("\nuse ") {
        let rest = &text[at + "\nuse ".len()..];
        if !["crate::", "super::", "self::"].iter().any(|start| rest.starts_with(start)) {
            expand(&module, rest, &mut found);
        }
    }
    found
}

/// Takes apart `a::{b, c::d}`: all paths in it, each behind `base`. Returns what follows.
fn expand<'a>(base: &[String], text: &'a str, found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut inner) = text.strip_prefix('{') {
        while !inner.trim_start().starts_with('}') {
            inner = expand(base, inner, found).trim_start();
            // ` as name` of one of them, and the comma.
            inner = inner[inner.find([',', '}']).expect("the brace is closed")..].trim_start_matches(',');
        }
        return &inner.trim_start()[1..];
    }
    let len = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let path =
        if &text[..len] == "self" { base.to_vec() } else { [base, &[text[..len].to_owned()]].concat() };
    match text[len..].strip_prefix("::") {
        Some(rest) if len > 0 && !rest.starts_with('<') => expand(&path, rest, found),
        _ => {
            found.push(path);
            &text[len..]
        }
    }
}

/// The module of a file: `a/b.rs` is `["a", "b"]`, `a/mod.rs` is `["a"]`, `lib.rs` the root.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = if path == "lib" { "" } else { path.trim_end_matches("/mod") };
    path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// What each name stands for that a module re-exports from a child, or the crate's root from a room: by its path there.
fn re_exports(sources: &[Source]) -> HashMap<Vec<String>, Vec<String>> {
    let mut found = HashMap::new();
    for source in sources.iter().filter(|source| source.path == "lib.rs" || source.path.ends_with("/mod.rs"))
    {
        let module = module_of(&source.path);
        let mut paths = Vec::new();
        for re_export in ["\npub use ", "\npub(crate) use ", "\npub(super) use "] {
            for text in source.text.split(re_export).skip(1).filter(|text| !text.starts_with("crate::")) {
                expand(&module, text, &mut paths);
            }
        }
        for path in paths {
            let name = path.last().expect("it has a name").clone();
            found.insert([&module[..], &[name]].concat(), path);
        }
    }
    found
}

/// By file, the files of `src` that it imports from.
fn imports(sources: &[Source]) -> HashMap<&str, Vec<&str>> {
    let by_module: HashMap<_, _> =
        sources.iter().map(|source| (module_of(&source.path), &*source.path)).collect();
    let names = re_exports(sources);
    let file_of = |path: &[String]| {
        let stands_for = (1..=path.len()).find_map(|len| names.get(&path[..len]));
        let path = stands_for.map_or(path, |path| path);
        (1..=path.len()).rev().find_map(|len| by_module.get(&path[..len]).copied())
    };
    let of = |source| paths_of(source).iter().filter_map(|path| file_of(path)).collect();
    sources.iter().filter(|source| source.room != "lib").map(|source| (&*source.path, of(source))).collect()
}

fn room_of(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

#[test]
fn imports_only_point_down() {
    for (file, used) in imports(&sources()) {
        let rooms = ALLOWED.iter().find(|(room, _)| *room == room_of(file));
        let (room, below) = rooms.unwrap_or_else(|| panic!("{file} stands in no known room"));
        for used in used {
            let fine = room_of(used) == *room
                || below.contains(&room_of(used))
                || EXCEPTIONS.contains(&(file, room_of(used)));
            assert!(fine, "{file} uses {used}, which is not below {room}");
        }
    }
}

#[test]
fn the_files_of_a_room_import_each_other_in_no_circle() {
    let sources = sources();
    let imports = imports(&sources);
    let rooms = ALLOWED.iter().map(|(room, _)| *room);
    let circles = rooms.filter_map(|room| {
        imports.keys().filter(|file| room_of(file) == room).find_map(|file| circle(&imports, file))
    });
    let circles: Vec<_> = circles.collect();
    assert!(circles.is_empty(), "{circles:#?}");
}

/// A way from a file to itself that stays in its room.
fn circle<'a>(imports: &HashMap<&'a str, Vec<&'a str>>, from: &'a str) -> Option<Vec<&'a str>> {
    let mut seen = HashSet::new();
    let mut ways = vec![vec![from]];
    while let Some(way) = ways.pop() {
        let here = way[way.len() - 1];
        for &next in imports[here].iter().filter(|next| room_of(next) == room_of(from) && **next != here) {
            let longer = [&way[..], &[next]].concat();
            if next == from {
                return Some(longer);
            }
            if seen.insert(next) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn paths_are_found_in_all_the_ways_in_which_they_can_be_written() {
    let text = "use crate::{sys::fd, wire::{self, job::{A, B as C}}};\n#[cfg(test)]\nuse crate::tensor::X;\nuse child::D;\nfn f() { super::g() }";
    let source = Source { path: "queue/ring.rs".into(), room: "queue".into(), text: text.into() };
    let found: Vec<_> = paths_of(&source).iter().map(|path| path.join("::")).collect();
    assert_eq!(
        found,
        ["sys::fd", "wire", "wire::job::A", "wire::job::B", "queue::g", "queue::ring::child::D"]
    );
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

/// What finds out how a worker has ended cannot know what was done to it: it carries a plan to the workers, and asks nothing of it.
#[test]
fn diagnosis_cannot_read_which_faults_have_happened() {
    for source in sources().iter().filter(|source| ["error", "supervise", "context"].contains(&&*source.room))
    {
        let of_injection = |path: &Vec<String>| path.first().is_some_and(|room| room == "injection");
        for path in paths_of(source).into_iter().filter(of_injection) {
            assert_eq!(path, ["injection", "Faults"], "{}", source.path);
        }
        assert!(!source.text.contains(".fired()"), "{} asks which faults have happened", source.path);
    }
    let judge = sources().into_iter().find(|source| source.path == "launch/judge.rs").unwrap();
    let asks = |path: &Vec<String>| path.iter().any(|part| part == "faults" || part == "injection");
    assert!(
        !paths_of(&judge).iter().any(asks),
        "what judges the workers of a launcher asks which faults have happened"
    );
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

/// The lines of a page's programs, and whether rustdoc hides them.
fn code_of_page(page: &str) -> impl Iterator<Item = (bool, &str)> {
    let blocks = page.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).map(|line| (line == "#" || line.starts_with("# "), line))
}

#[test]
fn how_to_pages_say_all_that_their_code_needs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("examples/howto/Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[dependencies]\n").unwrap();
    let crates =
        dependencies.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split(' ').next());
    // What start.md has the reader depend on.
    let crates: Vec<_> = crates.filter(|name| !["anyhow", "phalanx", "serde"].contains(name)).collect();
    for entry in fs::read_dir(root.join("docs/howto")).unwrap() {
        let path = entry.unwrap().path();
        let page = fs::read_to_string(&path).unwrap();
        for (hidden, line) in code_of_page(&page) {
            let code = line.trim_start_matches(['#', ' ']);
            let shown = !hidden || !(code.starts_with("let ") || code.starts_with("use "));
            assert!(shown, "{}: the rest of the program needs this hidden line: {line}", path.display());
            for name in &crates {
                let used = !hidden && line.contains(&format!("{}::", name.replace('-', "_")));
                let named = page.contains(&format!("\n{name} = "));
                assert!(named || !used, "{}: no line of a Cargo.toml for {name}", path.display());
            }
        }
    }
}
