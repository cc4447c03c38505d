//! Names of addresses: from the symbol tables and debug information of the files that were loaded.
//!
//! The executable is read through /proc/self/exe, which is the file that runs also when another one has its name by now,
//! or none; where a loader was run with its name, by its path, if the file there has the build id of what runs. A shared
//! object is read by its path, if the file there still has the build id of what was loaded. These paths come from a worker,
//! which may have damaged or invented them: only regular files of code are read.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use addr2line::gimli::{self, Dwarf, DwarfPackage, EndianSlice, NativeEndian, SectionId};
use addr2line::{Context, Frame, LookupContinuation, LookupResult, SplitDwarfLoad};
use object::{Object, ObjectSymbol};

use super::elf::{is_build, read, section};
use super::executable::Executable;
use super::image::Module;

/// A place in the source that an address belongs to. One address has several where functions were inlined.
#[derive(Clone, Debug)]
pub(crate) struct Symbol {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
}

type Bytes = EndianSlice<'static, NativeEndian>;

/// A file of code that was read. It stays mapped: reading it again for each traceback would take as long each time.
struct Names {
    object: object::File<'static>,
    debug: Context<Bytes>,
    /// What `split-debuginfo = "packed"` has put beside the file.
    package: Option<DwarfPackage<Bytes>>,
}

/// By name and build id of the module: a shared object may be rebuilt between two workers. `None` where there is nothing to
/// read.
type Known = BTreeMap<(String, Vec<u8>), Option<Names>>;

static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());

/// How many modules are read at most, since their files stay mapped. The addresses of further ones get no names.
const MODULES_MAX: usize = 1024;

/// The places of an instruction, the innermost function first, of which the address in `module`'s file is `offset`.
pub(crate) fn symbols_at(module: &Module, offset: u64) -> Vec<Symbol> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names_of(&mut known, module);
    names.map(|names| names.at(offset)).unwrap_or_default()
}

fn names_of<'a>(known: &'a mut Known, module: &Module) -> Option<&'a Names> {
    let key = (module.name.clone(), module.build_id.clone());
    if known.len() >= MODULES_MAX && !known.contains_key(&key) {
        return None;
    }
    known.entry(key).or_insert_with(|| Names::of(module)).as_ref()
}

impl Names {
    fn of(module: &Module) -> Option<Self> {
        let object = if module.is_main() { main_file() } else { read(Path::new(&module.name)) };
        let object = object.filter(|object| is_build(object, &module.build_id))?;
        let object = match object.section_by_name(".debug_info") {
            Some(_) => object,
            None => separate_debug_file(&module.build_id).unwrap_or(object),
        };
        let debug = Context::from_dwarf(dwarf(&object, |id| Some(id.name()))).ok()?;
        Some(Self { object, debug, package: package_beside(module) })
    }

    fn at(&self, offset: u64) -> Vec<Symbol> {
        let mut symbols = Vec::new();
        if let Some(mut frames) = self.frames_at(offset) {
            while let Ok(Some(frame)) = frames.next() {
                symbols.push(symbol_of(&frame));
            }
        }
        // Where there is no debug information, and of assembly, which has lines only.
        match symbols.last_mut() {
            Some(outermost) => {
                outermost.function = outermost.function.take().or_else(|| self.name_at(offset))
            }
            None => {
                let alone = |name| Symbol { function: Some(name), file: None, line: None, column: None };
                symbols.extend(self.name_at(offset).map(alone));
            }
        }
        symbols
    }

    fn frames_at(&self, offset: u64) -> Option<addr2line::FrameIter<'_, Bytes>> {
        let mut lookup = self.debug.find_frames(offset);
        loop {
            match lookup {
                LookupResult::Output(frames) => return frames.ok(),
                LookupResult::Load { load, continuation } => {
                    lookup = continuation.resume(self.split_dwarf(&load));
                }
            }
        }
    }

    /// The debug information of a unit that the profile's `split-debuginfo` has put into another file. Its number tells that
    /// it belongs to this one.
    fn split_dwarf(&self, load: &SplitDwarfLoad<Bytes>) -> Option<Arc<Dwarf<Bytes>>> {
        let packed =
            self.package.as_ref().and_then(|all| all.find_cu(load.dwo_id, &load.parent).ok().flatten());
        packed.or_else(|| unpacked(load)).map(Arc::new)
    }

    fn name_at(&self, offset: u64) -> Option<String> {
        let mut symbols = self.object.symbols().chain(self.object.dynamic_symbols());
        let has = |symbol: &object::Symbol<'_, '_>| {
            offset.checked_sub(symbol.address()).is_some_and(|within| within < symbol.size())
        };
        let symbol = symbols.find(|symbol| symbol.is_definition() && has(symbol))?;
        Some(demangled(symbol.name().ok()?))
    }
}

fn symbol_of(frame: &Frame<'_, Bytes>) -> Symbol {
    let function = frame.function.as_ref().and_then(|function| function.raw_name().ok());
    let place = frame.location.as_ref();
    Symbol {
        function: function.map(|name| demangled(&name)),
        file: place.and_then(|place| place.file).map(str::to_owned),
        line: place.and_then(|place| place.line),
        column: place.and_then(|place| place.column),
    }
}

/// Without the hash that rustc adds.
fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// The executable's file.
fn main_file() -> Option<object::File<'static>> {
    Executable::of_this_process().ok()?.path().and_then(read)
}

/// What a package of debug information of this build has installed.
fn separate_debug_file(build_id: &[u8]) -> Option<object::File<'static>> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    read(Path::new(&format!("/usr/lib/debug/.build-id/{first:02x}/{rest}.debug")))
}

fn dwarf(object: &object::File<'static>, name: impl Fn(SectionId) -> Option<&'static str>) -> Dwarf<Bytes> {
    let load = |id| name(id).map(|name| section(object, name)).unwrap_or_default();
    let Ok(dwarf) = Dwarf::load(|id| Ok::<_, Infallible>(EndianSlice::new(load(id), NativeEndian)));
    dwarf
}

fn package_beside(module: &Module) -> Option<DwarfPackage<Bytes>> {
    let path = match module.is_main() {
        true => fs::canonicalize(Executable::of_this_process().ok()?.path()?).ok()?,
        false => PathBuf::from(&module.name),
    };
    let package = read(&path.with_added_extension("dwp"))?;
    let bytes = |id: SectionId| id.dwo_name().map(|name| section(&package, name)).unwrap_or_default();
    let load = |id| Ok::<_, gimli::Error>(EndianSlice::new(bytes(id), NativeEndian));
    DwarfPackage::load(load, EndianSlice::new(&[], NativeEndian)).ok()
}

/// From the unit's own file, where the compiler has left it.
fn unpacked(load: &SplitDwarfLoad<Bytes>) -> Option<Dwarf<Bytes>> {
    let text = |bytes: Option<Bytes>| bytes.map(|bytes| PathBuf::from(bytes.to_string_lossy().into_owned()));
    let path = text(load.comp_dir).unwrap_or_default().join(text(load.path)?);
    let mut split = dwarf(&read(&path)?, SectionId::dwo_name);
    let header = split.units().next().ok()??;
    if split.unit(header).ok()?.dwo_id != Some(load.dwo_id) {
        return None;
    }
    split.make_dwo(&load.parent);
    Some(split)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::image;

    /// A shared object at `path` that has the executable's build id.
    fn at(path: &Path) -> Module {
        Module { name: path.to_str().unwrap().into(), ..image::modules().remove(0) }
    }

    /// What the file of the executable calls the function `at`.
    fn offset() -> u64 {
        image::Image::main().unwrap().offset_of((at as *const ()).addr()).unwrap()
    }

    fn is_named(module: &Module) -> bool {
        let is_ours =
            |symbol: &Symbol| symbol.function.as_ref().is_some_and(|name| name.ends_with("tests::at"));
        symbols_at(module, offset()).iter().any(is_ours)
    }

    fn copy_in(dir: &Path) -> PathBuf {
        let copy = dir.join("lib.so");
        fs::copy("/proc/self/exe", &copy).unwrap();
        copy
    }

    #[test]
    fn rebuilt_object_has_names_of_its_own_and_none_of_its_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        let loaded = at(&copy_in(dir.path()));
        let other = Module { build_id: vec![1; 20], ..loaded.clone() };
        assert!(!is_named(&other), "the file is not the one that was loaded");
        assert!(is_named(&loaded));
        assert!(!is_named(&other));
    }

    #[test]
    fn worker_that_invents_modules_makes_the_launcher_keep_only_so_much() {
        let mut known = Known::new();
        for number in 0..2 * MODULES_MAX {
            let name = format!("/nowhere/lib{number}.so");
            assert!(names_of(&mut known, &at(Path::new(&name))).is_none());
        }
        assert_eq!(known.len(), MODULES_MAX);
    }
}
