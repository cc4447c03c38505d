//! Which file this process runs. Mostly it is /proc/self/exe; but where a loader was run with its name
//! (`ld.so ./program`, ld.so(8)), or an emulator, that is the loader or the emulator.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::OnceLock;

use super::{elf, image, limits};

/// The file that the kernel was asked to run, also when its name is gone or another file's.
const OWN: &str = "/proc/self/exe";

/// What /proc/self/exe is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Executable {
    /// Our file.
    Own,
    /// The loader that has loaded our file: these are its arguments with the file's path at their end, which come before
    /// ours.
    Loader(Vec<CString>),
    /// Something else, as far as can be found out.
    Other,
}

impl Executable {
    /// That of this process, looked up once.
    ///
    /// # Errors
    /// When the system does not let us look, as for want of a descriptor. Another time it may.
    pub(crate) fn of_this_process() -> io::Result<&'static Self> {
        static FOUND: OnceLock<Executable> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let found = limits::with_room(find)?;
        Ok(FOUND.get_or_init(|| found.unwrap_or(Self::Other)))
    }

    /// Where our file can be read.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Own => Some(Path::new(OWN)),
            Self::Loader(arguments) => {
                arguments.last().map(|path| Path::new(OsStr::from_bytes(path.as_bytes())))
            }
            Self::Other => None,
        }
    }
}

/// `None` where nothing tells.
fn find() -> io::Result<Option<Executable>> {
    let (headers, build_id) = image::main_object();
    // The kernel says where it has put the program headers of the file that it was asked to run. A loader that was run
    // itself changes that in its memory, but not what the kernel shows.
    if readable(std::fs::read("/proc/self/auxv"))?
        .is_some_and(|auxv| program_headers(&auxv) == Some(headers as u64))
    {
        return Ok(Some(Executable::Own));
    }
    // A file that may be run but not read, whose process may not read its auxv either: no loader could have read it.
    if readable(std::fs::File::open(OWN))?.is_none() {
        return Ok(Some(Executable::Own));
    }
    Ok(build_id.and_then(|build_id| find_by_build_id(&build_id, headers)))
}

/// `None` for what this user may not read.
fn readable<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        read => read.map(Some),
    }
}

fn find_by_build_id(build_id: &Vec<u8>, headers: usize) -> Option<Executable> {
    let is_ours = |path: &str| elf::build_id_of(Path::new(path)).as_ref() == Some(build_id);
    if is_ours(OWN) {
        return Some(Executable::Own);
    }
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = mapped_file(&maps, headers as u64).filter(|path| is_ours(path))?;
    let before = loaders_arguments(&std::fs::read("/proc/self/cmdline").ok()?, std::env::args_os())?;
    let path = CString::new(path).ok()?;
    Some(Executable::Loader(before.into_iter().chain([path]).collect()))
}

/// AT_PHDR of an auxiliary vector (getauxval(3)).
fn program_headers(auxv: &[u8]) -> Option<u64> {
    let (pairs, _) = auxv.as_chunks::<16>();
    let halves = pairs.iter().map(|pair| (word(pair, 0), word(pair, 8)));
    halves.into_iter().find_map(|(kind, value)| value.filter(|_| kind == Some(libc::AT_PHDR)))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The path of the file that is mapped at an address (proc_pid_maps(5)).
fn mapped_file(maps: &str, address: u64) -> Option<&str> {
    maps.lines().find_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let bound = |text| u64::from_str_radix(text, 16).ok();
        let path = line.split_once('/').map(|(before, _)| &line[before.len()..])?;
        (bound(start)? <= address && address < bound(end)?).then_some(path)
    })
}

/// What stands in a command line before our own arguments, which begin with our file's name. `None`: it does not end with
/// our arguments, or nothing stands there.
fn loaders_arguments(
    command_line: &[u8],
    ours: impl ExactSizeIterator<Item = OsString>,
) -> Option<Vec<CString>> {
    let all: Vec<_> = command_line.strip_suffix(b"\0")?.split(|&byte| byte == 0).collect();
    let before = all.len().checked_sub(ours.len()).filter(|&before| before > 0)?;
    // The first is the name by which the program was called, which the loader may have been told to change.
    let same = all[before..].iter().zip(ours).skip(1).all(|(said, ours)| ours.into_vec() == *said);
    same.then(|| all[..before].iter().map(|&word| CString::new(word).ok()).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(command_line: &[u8], ours: &[&str]) -> Option<Vec<CString>> {
        loaders_arguments(command_line, ours.iter().map(OsString::from))
    }

    #[test]
    fn loaders_arguments_are_what_stands_before_ours() {
        let expected = ["ld.so", "--library-path", "/x"].map(|word| CString::new(word).unwrap());
        let line = b"ld.so\0--library-path\0/x\0./prog\0base\0\0";
        assert_eq!(before(line, &["./prog", "base", ""]), Some(expected.to_vec()));
        assert_eq!(before(line, &["renamed", "base", ""]), Some(expected.to_vec()));
        assert_eq!(before(line, &["./prog", "other", ""]), None);
        assert_eq!(before(b"./prog\0base\0", &["./prog", "base"]), None);
        assert_eq!(before(b"", &["./prog"]), None);
    }

    #[test]
    fn mapped_file_is_that_of_the_address() {
        let maps = "55a0-55b0 r--p 00000000 fe:00 7    /opt/a b\n55b0-55c0 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapped_file(maps, 0x55a8), Some("/opt/a b"));
        assert_eq!(mapped_file(maps, 0x55b0), None);
    }

    #[test]
    fn this_test_runs_its_own_file_whose_build_id_can_be_read() {
        assert_eq!(Executable::of_this_process().unwrap(), &Executable::Own);
        assert_eq!(elf::build_id_of(Path::new(OWN)), image::main_object().1);
        assert_eq!(elf::build_id_of(Path::new("/proc/self/cmdline")), None);
    }
}
