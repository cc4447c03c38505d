//! Faults of a process, brought about on purpose: SIGSEGV, SIGBUS, a full stack.

use std::os::fd::AsFd;

use super::map::SharedMap;
use super::memfd;

/// Uses memory that is not there: SIGSEGV.
pub(crate) fn use_no_memory() {
    // Not null, which compilers know; the first page is never mapped (proc_sys_vm(5), mmap_min_addr).
    let nowhere = std::hint::black_box(8_usize) as *mut u8;
    // SAFETY: none of Rust's: the kernel ends the process at this instruction, which is what the caller wants.
    unsafe { nowhere.write_volatile(1) }
}

/// Uses a part of a mapped file that was cut off: SIGBUS.
pub(crate) fn use_memory_beyond_a_file() {
    let page = 4096;
    let cut = memfd::create_empty("phalanx-cut", page as u64).and_then(|file| {
        let map = SharedMap::new(file.as_fd(), page)?;
        memfd::set_size(file.as_fd(), 0)?;
        Ok(map)
    });
    // Where there is no memory for that: another fault of memory.
    cut.map_or_else(|_| use_no_memory(), |map| map.u8(0).store(1, std::sync::atomic::Ordering::Relaxed));
}

/// Calls itself until the stack is full.
pub(crate) fn use_all_of_the_stack() {
    #[inline(never)]
    fn descend(depth: u64) -> u64 {
        let frame = std::hint::black_box([depth; 64]);
        if frame[63] == u64::MAX { 0 } else { descend(depth + 1) + frame[0] }
    }
    std::hint::black_box(descend(0));
}
