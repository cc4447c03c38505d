//! Reading files of code (ELF): the executable, shared objects, and the files that hold their debug information.

use std::fs::{self, File, Metadata};
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::slice;

use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use object::{CompressionFormat, Object, ObjectSection};

use super::fd;

/// The largest file that is read, and the largest section after decompression. The debug information of the largest programs has
/// a few GiB.
const FILE_SIZE_MAX: u64 = 8 << 30;

/// The build id of the file at `path`, or `None` if that is no ELF file or has none.
pub(super) fn build_id_of(path: &Path) -> Option<Vec<u8>> {
    read(path)?.build_id().ok().flatten().map(<[u8]>::to_vec)
}

/// Whether `object` is the build that a process has loaded, as far as both have a build id.
pub(super) fn is_build(object: &object::File<'_>, build_id: &[u8]) -> bool {
    let found = object.build_id().ok().flatten();
    build_id.is_empty() || found.is_none_or(|found| found == build_id)
}

/// The ELF file at `path`, mapped for as long as this process lives.
pub(super) fn read(path: &Path) -> Option<object::File<'static>> {
    let file = open(path)?;
    // SAFETY: a private map that is only read. Builds and package managers replace a file of code rather than truncate it,
    // which would raise SIGBUS in every process that has it mapped.
    let map = ManuallyDrop::new(unsafe { memmap2::Mmap::map(&file) }.ok()?);
    // SAFETY: the map is never dropped, so its bytes are there for as long as the process.
    let bytes: &'static [u8] = unsafe { slice::from_raw_parts(map.as_ptr(), map.len()) };
    object::File::parse(bytes).ok()
}

/// Opens an ELF file. Never blocks, whatever the path leads to.
fn open(path: &Path) -> Option<File> {
    let fits = |metadata: &Metadata| metadata.is_file() && metadata.len() <= FILE_SIZE_MAX;
    // The loader's names are absolute, but for objects without a file, such as linux-vdso.so.1. A device is not even opened:
    // to open some has an effect, such as a watchdog's.
    if !path.is_absolute() || !fits(&fs::metadata(path).ok()?) {
        return None;
    }
    let file = File::from(fd::open_to_read(path).ok()?);
    let mut magic = [0; 4];
    // The path may lead to another file by now, so the descriptor is asked again.
    let is_code =
        fits(&file.metadata().ok()?) && file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF";
    is_code.then_some(file)
}

/// The contents of a section, decompressed; empty if the section is missing or damaged.
pub(super) fn section(object: &object::File<'static>, name: &str) -> &'static [u8] {
    let data = object.section_by_name(name).and_then(|section| section.compressed_data().ok());
    match data {
        Some(data) if data.format == CompressionFormat::None => data.data,
        Some(data) if data.format == CompressionFormat::Zlib => {
            let size = data.uncompressed_size.min(FILE_SIZE_MAX) as usize;
            decompress_to_vec_zlib_with_limit(data.data, size).map_or(&[], |bytes| bytes.leak())
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_code_are_opened_and_none_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let code = path("lib.so");
        fs::copy("/proc/self/exe", &code).unwrap();
        assert!(open(&code).is_some());
        // A link is as good as its target.
        std::os::unix::fs::symlink(&code, path("link")).unwrap();
        assert!(open(&path("link")).is_some());

        // Nobody writes into it: opened by a blocking open(2), it hangs this test.
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        fs::write(path("text"), "no code").unwrap();
        fs::write(path("short"), "\x7fE").unwrap();
        fs::copy(&code, path("large")).unwrap();
        let large = File::options().write(true).open(path("large")).unwrap();
        large.set_len(FILE_SIZE_MAX + 1).unwrap();
        for name in ["fifo", "socket", "text", "short", "large", "missing", "."] {
            assert!(open(&path(name)).is_none(), "{name}");
        }
        for name in ["/dev/zero", "/dev/tty", "/proc/self/maps", "/proc/self/fd/0/x", "relative", ""] {
            assert!(open(Path::new(name)).is_none(), "{name}");
        }
    }
}
