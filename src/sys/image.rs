//! dl_iterate_phdr(3): where the executable and its shared objects lie in this process.

use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::{io, slice};

use serde::{Deserialize, Serialize};

/// One loaded object: the executable (which has no name) or a shared object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// The linker's build id; empty where there is none.
    pub(crate) build_id: Vec<u8>,
    /// What the loader added to the addresses in the file, modulo 2^64: an object that lies below the address for
    /// which it was linked has a "negative" one.
    pub(crate) bias: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Module {
    pub(crate) fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// What the file calls this address.
    pub(crate) fn offset_of(&self, address: u64) -> u64 {
        address.wrapping_sub(self.bias)
    }

    /// Whether it is the executable.
    pub(crate) fn is_main(&self) -> bool {
        self.name.is_empty()
    }
}

/// Whether an object of this name is the C library, in which every thread begins.
pub(crate) fn is_libc(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    ["libc.so", "libc-2.", "libpthread", "ld-musl"].iter().any(|start| file.starts_with(start))
}

/// The running executable.
#[derive(Debug)]
pub(crate) struct Image {
    module: Module,
    id: Vec<u8>,
}

impl Image {
    /// The executable of this process, looked up once.
    ///
    /// # Errors
    /// When it has no build id and /proc/self/exe cannot be read either.
    pub(crate) fn main() -> io::Result<&'static Self> {
        static MAIN: OnceLock<Image> = OnceLock::new();
        if let Some(image) = MAIN.get() {
            return Ok(image);
        }
        let image = Self::find()?;
        Ok(MAIN.get_or_init(|| image))
    }

    fn find() -> io::Result<Self> {
        let module = first_object();
        let id = if module.build_id.is_empty() { file_identity()? } else { module.build_id.clone() };
        Ok(Self { module, id })
    }

    /// What tells this build from any other: the linker's build id, or else the file's identity.
    pub(crate) fn id(&self) -> &[u8] {
        &self.id
    }

    /// The offset of `address` in the executable, unless it lies elsewhere.
    pub(crate) fn offset_of(&self, address: usize) -> Option<u64> {
        let address = address as u64;
        self.module.contains(address).then(|| self.module.offset_of(address))
    }

    /// The address of `offset`, if a record of `size` bytes there lies in the executable.
    pub(crate) fn address_of(&self, offset: u64, size: usize) -> Option<usize> {
        let start = self.module.bias.wrapping_add(offset);
        let end = start.checked_add(size as u64)?;
        (self.module.contains(start) && end <= self.module.end).then_some(start as usize)
    }
}

fn file_identity() -> io::Result<Vec<u8>> {
    let file = std::fs::metadata("/proc/self/exe")?;
    let parts = [file.dev(), file.ino(), file.size()];
    Ok(parts.iter().flat_map(|part| part.to_le_bytes()).collect())
}

/// All loaded objects, the executable first.
pub(crate) fn modules() -> Vec<Module> {
    let mut found = Vec::new();
    each_object(&mut |object| {
        found.push(object.module());
        true
    });
    found
}

fn first_object() -> Module {
    let mut first = None;
    each_object(&mut |object| {
        first = Some(object.module());
        false
    });
    first.expect("the loader lists the executable first")
}

/// The address of the executable's program headers, and its build id.
pub(super) fn main_object() -> (usize, Option<Vec<u8>>) {
    let mut found = (0, None);
    each_object(&mut |object| {
        found = (object.headers.as_ptr().addr(), object.build_id());
        false
    });
    found
}

/// What dl_iterate_phdr tells of one object, valid during the callback.
struct Object<'a> {
    info: &'a libc::dl_phdr_info,
    headers: &'a [libc::Elf64_Phdr],
}

impl Object<'_> {
    fn module(&self) -> Module {
        let bias = self.info.dlpi_addr;
        let (start, end) = extent(bias, self.headers);
        // SAFETY: dlpi_name is null or a string that lives as long as the object is loaded.
        let name = (!self.info.dlpi_name.is_null()).then(|| unsafe { CStr::from_ptr(self.info.dlpi_name) });
        Module {
            name: name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            build_id: self.build_id().unwrap_or_default(),
            bias,
            start,
            end,
        }
    }

    fn build_id(&self) -> Option<Vec<u8>> {
        self.headers.iter().filter(|header| header.p_type == libc::PT_NOTE).find_map(|note| {
            let start = self.info.dlpi_addr.wrapping_add(note.p_vaddr) as *const u8;
            // SAFETY: PT_NOTE segments of a loaded object are mapped readable and never change.
            find_build_id(unsafe { slice::from_raw_parts(start, note.p_memsz as usize) })
        })
    }
}

/// From where to where the segments of an object lie.
fn extent(bias: u64, headers: &[libc::Elf64_Phdr]) -> (u64, u64) {
    let loads = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let start = loads().map(|load| load.p_vaddr).min().unwrap_or(0);
    let end = loads().map(|load| load.p_vaddr.saturating_add(load.p_memsz)).max().unwrap_or(0);
    (bias.wrapping_add(start), bias.wrapping_add(end))
}

/// The descriptor of the note "GNU" of type 3 in a note segment (elf(5)).
fn find_build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: usize = 3;
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize)
    };
    loop {
        let (name_len, desc_len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let desc_at = 12 + name_len.next_multiple_of(4);
        let name = notes.get(12..12 + name_len)?;
        let desc = notes.get(desc_at..desc_at + desc_len)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !desc.is_empty() {
            return Some(desc.to_vec());
        }
        notes = notes.get(desc_at + desc_len.next_multiple_of(4)..)?;
    }
}

type Visit<'a> = &'a mut dyn FnMut(&Object<'_>) -> bool;

/// Calls `visit` for every object until it returns false.
fn each_object(mut visit: Visit<'_>) {
    // SAFETY: the callback gets back the pointer to `visit`, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(visit_object), (&raw mut visit).cast()) };
}

extern "C" fn visit_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a record that is valid during this call.
    let info = unsafe { &*info };
    // SAFETY: the record's own count of headers, which stay mapped while the object is loaded.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: `data` is the pointer that each_object passed, and nobody else uses it meanwhile.
    let visit = unsafe { &mut *data.cast::<Visit<'_>>() };
    i32::from(!visit(&Object { info, headers }))
}

#[cfg(test)]
mod tests {
    use super::*;

    static HERE: u64 = 7;

    #[test]
    fn image_finds_own_static_and_refuses_the_heap() {
        let image = Image::main().unwrap();
        let address = &raw const HERE as usize;
        let offset = image.offset_of(address).unwrap();
        assert_eq!(image.address_of(offset, 8), Some(address));
        assert_eq!(image.address_of(u64::MAX - 3, 8), None);
        assert_eq!(image.address_of(image.module.end - image.module.bias - 4, 8), None);
        assert_eq!(image.offset_of(Box::into_raw(Box::new(1_u8)) as usize), None);
        assert!(!image.id().is_empty());
    }

    fn load(p_vaddr: u64, p_memsz: u64) -> libc::Elf64_Phdr {
        libc::Elf64_Phdr {
            p_type: libc::PT_LOAD,
            p_flags: 0,
            p_offset: 0,
            p_vaddr,
            p_paddr: p_vaddr,
            p_filesz: p_memsz,
            p_memsz,
            p_align: 0x1000,
        }
    }

    #[test]
    fn object_below_its_link_address_has_its_extent() {
        let loads = [load(0x7000_0000, 0x800), load(0x7000_1000, 0x1234)];
        let bias = 0x1000_0000_u64.wrapping_sub(0x7000_0000);
        let (start, end) = extent(bias, &loads);
        assert_eq!((start, end), (0x1000_0000, 0x1000_2234));
        let module = Module { name: "libfar.so".into(), build_id: vec![], bias, start, end };
        assert!(module.contains(0x1000_0010));
        assert_eq!(module.offset_of(0x1000_0010), 0x7000_0010);
        assert_eq!(extent(bias, &[]), (bias, bias));
    }

    #[test]
    fn libc_is_known_by_its_file() {
        assert!(["/lib/x86_64-linux-gnu/libc.so.6", "/lib/ld-musl-x86_64.so.1"].into_iter().all(is_libc));
        assert!(!["", "/usr/lib/libcrypto.so.3", "/libc.so/libm.so.6"].into_iter().any(is_libc));
    }

    #[test]
    fn build_id_of_damaged_notes_is_none() {
        let mut note = Vec::new();
        for word in [4_u32, 2, 3] {
            note.extend(word.to_ne_bytes());
        }
        note.extend(b"GNU\0\xab\xcd\0\0");
        assert_eq!(find_build_id(&note), Some(vec![0xab, 0xcd]));
        assert_eq!(find_build_id(&note[..17]), None);
        assert_eq!(find_build_id(&[0xff; 40]), None);
    }

    proptest::proptest! {
        #[test]
        fn hostile_notes_never_panic(bytes: Vec<u8>) {
            let _ = find_build_id(&bytes);
        }
    }
}
