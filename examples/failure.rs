//! Every way in which a worker can fail, and what its launcher says then: `cargo run --example failure`.
//! Rank 1 is the one that fails; the other two only wait, and are ended with it.

#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "it shows results; exit is a failure")]
#![expect(unsafe_code, reason = "so are signals and faults")]

use std::hint::black_box;

use anyhow::Context;

type Fail = fn() -> anyhow::Result<()>;
const FAILURES: [(&str, Fail); 8] = [
    ("an error with a context chain", read_weights),
    ("a panic", || panic!("the loss is {}", f32::NAN)),
    ("exit code 3", || std::process::exit(3)),
    ("exit code 0, but before the function has returned", || std::process::exit(0)),
    ("SIGKILL", kill_myself),
    ("abort", || std::process::abort()),
    ("a segmentation fault", write_to_nowhere),
    ("a stack overflow", recurse),
];

fn main() {
    phalanx::init();
    for (number, (name, _)) in FAILURES.iter().enumerate() {
        let error = phalanx::spawn(work, number, 3).expect_err("rank 1 fails");
        println!("=== {name} ===\n\n{error}\n");
    }
}

fn work(rank: usize, number: usize) -> anyhow::Result<()> {
    if rank == 1 {
        return FAILURES[number].1();
    }
    loop {
        std::thread::park();
    }
}

fn read_weights() -> anyhow::Result<()> {
    let read = std::fs::read("weights.bin").context("cannot read weights.bin");
    read.map(drop).context("cannot resume the training")
}

fn kill_myself() -> anyhow::Result<()> {
    // SAFETY: raise(3) takes any number and touches no memory of this program.
    unsafe { libc::raise(libc::SIGKILL) };
    unreachable!("SIGKILL cannot be survived")
}

fn write_to_nowhere() -> anyhow::Result<()> {
    // SAFETY: broken on purpose. Nothing is ever mapped at this address, so the kernel answers with SIGSEGV.
    unsafe { black_box(std::ptr::without_provenance_mut::<u8>(8)).write_volatile(1) };
    unreachable!("nothing is mapped there")
}

fn recurse() -> anyhow::Result<()> {
    if black_box(true) { black_box(recurse()) } else { Ok(()) }
}
