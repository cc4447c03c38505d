//! Pure: what runs now, for people: one line, and a table.

use super::board::{Board, WorkerNow};
use crate::supervise::pump::clock;
use crate::sys::clock::Moment;

/// The line at the bottom of the terminal.
pub(super) fn line(job: &str, board: &Board, now: Moment) -> String {
    let restarts = match board.attempt {
        1 => "1 restart".to_owned(),
        number => format!("{number} restarts"),
    };
    let age = clock(now.since(board.began));
    let most = board.workers.iter().enumerate().filter_map(|(rank, worker)| Some((rank, worker.usage?)));
    let most = most.max_by_key(|(_, usage)| usage.resident).map(|(rank, usage)| {
        format!(", most memory: rank {rank}, {}, {:.0} % CPU", size(usage.resident), usage.load * 100.0)
    });
    let (running, workers) = (board.running(), board.workers.len());
    format!("{job}: {running}/{workers} up, {restarts}, {age}{}", most.unwrap_or_default())
}

/// A line for each worker, below a head.
pub(super) fn table(job: &str, board: &Board, now: Moment) -> String {
    let head = ["rank", "pid", "age", "memory", "CPU", "state"].map(str::to_owned);
    let rows = board.workers.iter().enumerate().map(|(rank, worker)| row(rank, worker, now));
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<_> =
        (0..5).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    let (running, workers) = (board.running(), board.workers.len());
    let age = clock(now.since(board.began));
    let mut text = format!("job {job}, attempt {}: {running}/{workers} up after {age}", board.attempt);
    for row in rows {
        text.push_str("\n ");
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!(" {cell:>width$} "));
        }
        text.push_str(&format!(" {}", row[5]));
    }
    text
}

fn row(rank: usize, worker: &WorkerNow, now: Moment) -> [String; 6] {
    let until = worker.ending.map_or(now, |(_, at)| at);
    let usage = worker.usage;
    let state = match (worker.ending, usage.map(|usage| usage.state)) {
        (Some((ending, _)), _) => ending.to_string(),
        (None, Some('R')) => "runs".to_owned(),
        (None, Some('D')) => "waits in the kernel, and takes no signal".to_owned(),
        (None, Some('T' | 't')) => "is stopped".to_owned(),
        (None, Some('Z' | 'X')) => "has ended".to_owned(),
        (None, Some(_)) => "sleeps".to_owned(),
        (None, None) => "is not known".to_owned(),
    };
    let [memory, load] = match usage {
        Some(usage) => [size(usage.resident), format!("{:.0} %", usage.load * 100.0)],
        None => ["-", "-"].map(str::to_owned),
    };
    [rank.to_string(), worker.pid.to_string(), clock(until.since(worker.started)), memory, load, state]
}

/// In MiB or GiB.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests {
    use super::super::event::Event;
    use super::super::summary::Ending;
    use super::*;
    use std::time::Duration;

    #[test]
    fn line_and_table_tell_who_runs_and_who_has_most() {
        let mut board = Board::new();
        let own = std::process::id();
        // The second one is no process, so nothing is known of it.
        let pids = vec![own, u32::MAX, 7];
        board.hear(&Event::Started { attempt: 1, pids, log_dir: None });
        board.look();
        board.hear(&Event::Ended { rank: 2, ending: Ending::Exited { code: 3 } });
        let now = board.began.checked_add(Duration::from_secs(3723)).unwrap();
        let line = line("train", &board, now);
        assert!(line.starts_with("train: 2/3 up, 1 restart, 1:02:03, most memory: rank 0, "), "{line}");
        assert!(line.ends_with(" % CPU"), "{line}");
        let table = table("train", &board, now);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "job train, attempt 1: 2/3 up after 1:02:03");
        assert!(lines[2].contains(&own.to_string()) && lines[2].contains("1:02:0"), "{table}");
        assert!(lines[3].ends_with("is not known"), "{table}");
        // The columns are as wide as what the other tests of this process have made of its memory and processor time.
        let ended: Vec<_> = lines[4].split_whitespace().collect();
        assert_eq!(ended, ["2", "7", "0:00:00", "-", "-", "exited", "with", "code", "3"], "{table}");
    }
}
