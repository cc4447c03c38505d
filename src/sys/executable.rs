//! Which file this process runs. Mostly it is /proc/self/exe; but where a loader was run with its name
//! (`ld.so ./program`, ld.so(8)), or an emulator, that is the loader or the emulator.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use super::image;

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
    pub(crate) fn of_this_process() -> &'static Self {
        static FOUND: OnceLock<Executable> = OnceLock::new();
        FOUND.get_or_init(|| find().unwrap_or(Self::Other))
    }
}

/// `None` where nothing tells.
fn find() -> Option<Executable> {
    let (headers, build_id) = image::main_object();
    // The kernel says where it has put the program headers of the file that it was asked to run. A loader that was run
    // itself changes that in its memory, but not what the kernel shows.
    if std::fs::read("/proc/self/auxv").is_ok_and(|auxv| program_headers(&auxv) == Some(headers as u64)) {
        return Some(Executable::Own);
    }
    let build_id = build_id?;
    let is_ours = |path: &str| build_id_of(path).is_ok_and(|found| found.as_ref() == Some(&build_id));
    if is_ours("/proc/self/exe") {
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

/// The build id in an executable file (elf(5)).
fn build_id_of(path: &str) -> io::Result<Option<Vec<u8>>> {
    /// More is no build id's note.
    const MOST: usize = 64 * 1024;
    let file = File::open(path)?;
    let read = |at: u64, length: usize| {
        let mut bytes = vec![0; length.min(MOST)];
        file.read_exact_at(&mut bytes, at).map(|()| bytes)
    };
    let header = read(0, size_of::<libc::Elf64_Ehdr>())?;
    let half = |bytes: &[u8], at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    // e_phoff, e_phentsize and e_phnum.
    let (at, size, count) = (word(&header, 32).unwrap_or(0), half(&header, 54), half(&header, 56));
    let table = read(at, usize::from(size) * usize::from(count))?;
    for entry in table.chunks_exact(size_of::<libc::Elf64_Phdr>()) {
        let kind = u32::from_ne_bytes([entry[0], entry[1], entry[2], entry[3]]);
        // p_offset and p_filesz.
        if let (libc::PT_NOTE, Some(at), Some(length)) = (kind, word(entry, 8), word(entry, 32)) {
            let found = image::find_build_id(&read(at, usize::try_from(length).unwrap_or(MOST))?);
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
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
        assert_eq!(Executable::of_this_process(), &Executable::Own);
        assert_eq!(build_id_of("/proc/self/exe").unwrap(), image::main_object().1);
        assert!(build_id_of("/proc/self/cmdline").is_err());
    }
}
