//! The one table, and how what stands in a row of it is measured.

use std::sync::Once;

use crate::figures::{median, row, table, time};
use crate::python;

/// Whose figure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Column {
    Phalanx,
    Python,
    IpcChannel,
    Bare,
}

use Column::{Bare, IpcChannel, Phalanx, Python};

const HEADS: [&str; 6] =
    ["what", "aim", "phalanx", "Python's multiprocessing", "ipc-channel", "bare (named in the cell)"];

type Run<'a> = Box<dyn FnMut() -> anyhow::Result<Vec<f64>> + 'a>;

/// Something that is measured: one figure for each line in one turn, or none at all where it is not here.
struct Way<'a> {
    column: Column,
    name: &'static str,
    run: Run<'a>,
    turns: Vec<Vec<f64>>,
}

struct Line {
    what: String,
    aim: &'static str,
    show: fn(f64) -> String,
    over_bare: bool,
}

/// Lines of the table that are measured together.
#[derive(Default)]
pub(crate) struct Group<'a> {
    lines: Vec<Line>,
    ways: Vec<Way<'a>>,
}

impl<'a> Group<'a> {
    pub(crate) fn line(self, what: impl Into<String>, aim: &'static str, show: fn(f64) -> String) -> Self {
        self.add_line(Line { what: what.into(), aim, show, over_bare: false })
    }

    /// A line of times, those of ours with their ratio to the bare one.
    pub(crate) fn line_over_bare(self, what: impl Into<String>, aim: &'static str) -> Self {
        self.add_line(Line { what: what.into(), aim, show: time, over_bare: true })
    }

    fn add_line(mut self, line: Line) -> Self {
        self.lines.push(line);
        self
    }

    /// What has one figure. `name`: what it is, where that is not plain.
    pub(crate) fn way(
        self,
        column: Column,
        name: &'static str,
        mut run: impl FnMut() -> anyhow::Result<f64> + 'a,
    ) -> Self {
        self.ways(column, name, move || Ok(vec![run()?]))
    }

    /// What has a figure for each line.
    pub(crate) fn ways(
        mut self,
        column: Column,
        name: &'static str,
        run: impl FnMut() -> anyhow::Result<Vec<f64>> + 'a,
    ) -> Self {
        self.ways.push(Way { column, name, run: Box::new(run), turns: Vec::new() });
        self
    }

    /// A part of the script, with its arguments.
    pub(crate) fn python(self, name: &'static str, part: &'a str, arguments: &'a [usize]) -> Self {
        self.ways(Python, name, move || python::figures(part, name, arguments))
    }

    /// Measures in so many turns, and prints the lines.
    pub(crate) fn print(mut self, turns: usize) -> anyhow::Result<()> {
        // The first of several turns only warms up.
        for turn in 0..turns + usize::from(turns > 1) {
            for way in &mut self.ways {
                let figures = (way.run)()?;
                way.turns.extend((turns == 1 || turn > 0).then_some(figures));
            }
        }
        head();
        (0..self.lines.len()).for_each(|line| self.print_line(line));
        Ok(())
    }

    fn print_line(&self, number: usize) {
        let line = &self.lines[number];
        let cells = [Phalanx, Python, IpcChannel, Bare].map(|column| self.cell(number, column));
        let [phalanx, python, ipc_channel, bare] = cells;
        row(&[line.what.clone(), line.aim.to_owned(), phalanx, python, ipc_channel, bare]);
    }

    fn cell(&self, line: usize, column: Column) -> String {
        let here = self.ways.iter().filter(|way| way.column == column);
        let cells: Vec<_> = here.map(|way| self.figure(line, way)).collect();
        if cells.is_empty() { "–".to_owned() } else { cells.join(", ") }
    }

    fn figure(&self, number: usize, way: &Way<'_>) -> String {
        let line = &self.lines[number];
        let figures: Vec<_> = way.figures(number).collect();
        if figures.is_empty() {
            return "not here".to_owned();
        }
        let ratio = self.over_bare(number, way).map(|ratio| format!("{ratio:.2} × bare"));
        let named = Some(way.name.to_owned()).filter(|name| !name.is_empty());
        let notes: Vec<_> = named.into_iter().chain(ratio).collect();
        match (line.show)(median(figures)) {
            figure if notes.is_empty() => figure,
            figure => format!("{figure} ({})", notes.join(": ")),
        }
    }

    /// The ratio of one of our ways to the bare one.
    fn over_bare(&self, line: usize, way: &Way<'_>) -> Option<f64> {
        let bare = self.ways.iter().find(|way| way.column == Bare)?;
        let pairs = way.figures(line).zip(bare.figures(line));
        (self.lines[line].over_bare && way.column == Phalanx)
            .then(|| median(pairs.map(|(own, bare)| own / bare)))
    }
}

impl Way<'_> {
    fn figures(&self, line: usize) -> impl Iterator<Item = f64> {
        self.turns.iter().filter_map(move |figures| figures.get(line).copied())
    }
}

/// Prints the table's head, before the first row.
fn head() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| table("Queues, pipes and locks", &HEADS));
}

/// A number a second, in millions.
pub(crate) fn millions(rate: f64) -> String {
    format!("{:.2}", rate / 1e6)
}
