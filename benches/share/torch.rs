//! torch, where it is installed.

use std::process::Command;

use crate::figures::{Extent, table};

/// From `put` to the answer that the other process has read the first element: torch has no figure without a queue.
const TORCH: &str = r#"
import statistics, time
import torch, torch.multiprocessing as mp

def answer(there, back, rounds):
    for _ in range(rounds):
        tensor = there.get()
        back.put(int(tensor[0]))
        del tensor

context = mp.get_context("fork")
for strategy in ("file_descriptor", "file_system"):
    mp.set_sharing_strategy(strategy)
    for mib, rounds in ((1, 200), (64, 20)):
        there, back, times = context.SimpleQueue(), context.SimpleQueue(), []
        process = context.Process(target=answer, args=(there, back, rounds))
        process.start()
        for turn in range(rounds):
            tensor = torch.full((mib << 18,), float(turn)).share_memory_()
            start = time.perf_counter()
            there.put(tensor)
            back.get()
            times.append(time.perf_counter() - start)
        process.join()
        print(f"| {strategy} | {mib} MiB | {statistics.median(times) * 1e6:.0f} µs |", flush=True)
"#;

pub(crate) fn torch(_: Extent) -> anyhow::Result<()> {
    let python = |script: &str| Command::new("python3").args(["-c", script]).output();
    if !python("import torch").is_ok_and(|output| output.status.success()) {
        println!("\ntorch is not here");
        return Ok(());
    }
    table(
        "torch: a tensor through `SimpleQueue`, its first element read, and an answer",
        &["strategy", "tensor", "time"],
    );
    let output = python(TORCH)?;
    anyhow::ensure!(output.status.success(), "torch: {}", String::from_utf8_lossy(&output.stderr));
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
