//! Starting and joining by Python's multiprocessing, and by torch where it is installed.

use crate::figures::Extent;
use crate::script::run_python;
use crate::starting::Series;

/// Arguments: library, start method, workers, rounds. What the workers call must be found by its name in the others'
/// fresh processes, to which this script is no module. The first round only warms up.
const SCRIPT: &str = r"
import operator, os, sys, time
library, method, nprocs, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if library == 'torch':
    import torch.multiprocessing as mp
    def once():
        mp.start_processes(operator.index, nprocs=nprocs, join=True, start_method=method)
else:
    import multiprocessing as mp
    context = mp.get_context(method)
    def once():
        workers = [context.Process(target=os.getpid) for _ in range(nprocs)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
for turn in range(rounds + 1):
    start = time.perf_counter()
    once()
    if turn: print(time.perf_counter() - start)
";

pub(crate) fn python(extent: Extent) -> anyhow::Result<Vec<Series>> {
    let mut found = Vec::new();
    for (library, module) in [("Python", "multiprocessing"), ("torch", "torch")] {
        if run_python(&["-c", &format!("import {module}")])?.is_none() {
            continue;
        }
        for method in ["fork", "forkserver", "spawn"] {
            let mut series = Series { name: format!("{library} {method}"), turns: Vec::new() };
            for nprocs in [4, 64] {
                let rounds = extent.rounds(if method == "fork" { 15 } else { 5 });
                let numbers = [nprocs, rounds].map(|number| number.to_string());
                let printed = run_python(&["-c", SCRIPT, module, method, &numbers[0], &numbers[1]])?;
                let turns = printed.iter().flat_map(|text| text.lines()).map(str::parse);
                let turns = turns.collect::<Result<Vec<_>, _>>()?;
                series.turns.extend((!turns.is_empty()).then_some((nprocs, turns)));
            }
            found.push(series);
        }
    }
    Ok(found)
}
