//! Runs a program without some system calls: `without NUMBER[,NUMBER]... PROGRAM [ARGUMENT]...`. The kernel answers ENOSYS to them, as
//! one that does not have them yet, in all that the program starts too (seccomp(2)).

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// struct sock_filter (linux/filter.h).
#[repr(C)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    first: *const Instruction,
}

unsafe extern "C" {
    fn prctl(option: i32, ...) -> i32;
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const ALLOW: u32 = 0x7fff_0000; // SECCOMP_RET_ALLOW
const NO_SUCH_CALL: u32 = 0x0005_0000 | 38; // SECCOMP_RET_ERRNO, ENOSYS
const NO_NEW_PRIVILEGES: i32 = 38; // PR_SET_NO_NEW_PRIVS
const SET_SECCOMP: i32 = 22; // PR_SET_SECCOMP
const FILTER: usize = 2; // SECCOMP_MODE_FILTER

fn refuse(numbers: &[u32]) -> io::Result<()> {
    let step = |code, if_true, value| Instruction { code, if_true, if_false: 0, value };
    // The number of the call is the first field of struct seccomp_data.
    let mut filter = vec![step(LOAD, 0, 0)];
    for (place, &number) in numbers.iter().enumerate() {
        filter.push(step(IF_EQUAL, (numbers.len() - place) as u8, number));
    }
    filter.extend([step(RETURN, 0, ALLOW), step(RETURN, 0, NO_SUCH_CALL)]);
    let program = Program { length: filter.len() as u16, first: filter.as_ptr() };
    // SAFETY: takes integers.
    let done = unsafe { prctl(NO_NEW_PRIVILEGES, 1_usize, 0_usize, 0_usize, 0_usize) };
    // SAFETY: a program of ours, which the kernel copies and checks.
    if done != 0 || unsafe { prctl(SET_SECCOMP, FILTER, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = || io::Error::other("without NUMBER[,NUMBER]... PROGRAM [ARGUMENT]...");
    let numbers = arguments.next().and_then(|numbers| numbers.into_string().ok()).ok_or_else(usage)?;
    let numbers: Result<Vec<_>, _> = numbers.split(',').map(str::parse).collect();
    let program = arguments.next().ok_or_else(usage)?;
    refuse(&numbers.map_err(io::Error::other)?)?;
    Err(Command::new(program).args(arguments).exec())
}
