//! Stdout and stderr of this process, shared by all children.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::SourceId;
use super::lines::{Piece, without_moves};
use super::status::StatusLine;
use crate::sys::clock::Moment;
use crate::sys::fork::group_id;
use crate::sys::pipe::{columns, foreground, is_same_file, is_terminal, write_all};

/// One of the two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Erases the line on which the cursor is, and goes to its begin (ECMA-48, EL).
const ERASE: &[u8] = b"\r\x1b[K";

/// Both streams. Where they lead to one file, as on a terminal, they share its lines.
#[derive(Debug)]
pub(crate) struct Console {
    outputs: [Output; 2],
    is_one_file: bool,
    /// Below what is written to stderr, where that is a terminal.
    status: StatusLine,
}

#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    is_terminal: bool,
    /// Written when it is full, or when the thread has nothing more to read.
    buffer: Vec<u8>,
    /// The source whose line has begun and not ended.
    open: Option<SourceId>,
    /// The source that wrote last (`None`: this process itself), and when; of an open line, when it was begun.
    last: Option<(Option<SourceId>, Moment)>,
    is_broken: bool,
}

/// What stands last on an output, for a source that has a part of a line to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing of another source.
    Own,
    /// A line that another source wrote at this moment.
    OthersLine(Moment),
    /// A part of another source's line, since this moment. A part of this source's would end it.
    OthersPart(Moment),
}

impl Output {
    fn new(fd: OwnedFd) -> Self {
        let is_terminal = is_terminal(&fd);
        Self { fd, is_terminal, buffer: Vec::new(), open: None, last: None, is_broken: false }
    }

    fn end_line(&mut self) {
        if self.open.take().is_some() {
            self.buffer.push(b'\n');
        }
    }

    fn put(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
    }
}

impl Console {
    /// Over copies of stdout and stderr.
    pub(crate) fn new(stdout: OwnedFd, stderr: OwnedFd) -> Self {
        let is_one_file = is_same_file(stdout.as_fd(), stderr.as_fd());
        let outputs = [Output::new(stdout), Output::new(stderr)];
        Self { outputs, is_one_file, status: StatusLine::default() }
    }

    /// The output to which a stream goes.
    fn output(&mut self, stream: Stream) -> &mut Output {
        let index = self.index(stream);
        &mut self.outputs[index]
    }

    fn index(&self, stream: Stream) -> usize {
        if self.is_one_file { 0 } else { stream as usize }
    }

    pub(super) fn is_terminal(&self, stream: Stream) -> bool {
        self.outputs[stream as usize].is_terminal
    }

    pub(super) fn turn(&self, stream: Stream, source: SourceId) -> Turn {
        let output = &self.outputs[self.index(stream)];
        match output.last {
            Some((writer, at)) if writer != Some(source) && output.open.is_some() => Turn::OthersPart(at),
            Some((writer, at)) if writer != Some(source) => Turn::OthersLine(at),
            _ => Turn::Own,
        }
    }

    /// Puts a piece of a source's output into the buffer.
    pub(super) fn tell(
        &mut self,
        stream: Stream,
        (source, prefix): (SourceId, &[u8]),
        piece: Piece<'_>,
        now: Moment,
    ) {
        let output = self.output(stream);
        let is_own = output.open == Some(source);
        if piece == (Piece::Line { rest: &[], shown: true }) && !is_own {
            // Another source's line has ended the part that was shown.
            return;
        }
        if !is_own {
            output.end_line();
        }
        match piece {
            Piece::Line { rest, .. } if is_own => output.put(&[&without_moves(rest), b"\n"]),
            Piece::Line { rest, .. } => output.put(&[prefix, &without_moves(rest), b"\n"]),
            Piece::Part(part) if is_own => output.put(&[&without_moves(part)]),
            Piece::Part(part) => output.put(&[prefix, &without_moves(part)]),
            Piece::Progress(state) | Piece::LastProgress(state) => {
                if is_own {
                    output.put(&[if output.is_terminal { ERASE } else { b"\n" }]);
                }
                output.put(&[prefix, &without_moves(state)]);
                if matches!(piece, Piece::LastProgress(_)) || !output.is_terminal {
                    output.put(&[b"\n"]);
                }
            }
        }
        let stays_open = match piece {
            Piece::Part(_) => true,
            Piece::Progress(_) => output.is_terminal,
            Piece::Line { .. } | Piece::LastProgress(_) => false,
        };
        output.open = stays_open.then_some(source);
        if !(is_own && stays_open) {
            output.last = Some((Some(source), now));
        }
    }

    /// Puts a line of this process's own into the buffer of stderr.
    pub(super) fn say(&mut self, line: &str, now: Moment) {
        let output = self.output(Stream::Stderr);
        output.end_line();
        output.last = Some((None, now));
        output.put(&[line.as_bytes(), b"\n"]);
    }

    /// What the line at the bottom of the terminal says; `None`: there is none.
    pub(super) fn set_status(&mut self, text: Option<String>) {
        if self.is_terminal(Stream::Stderr) {
            self.status.set(text);
        }
    }

    /// When that line is to be drawn.
    pub(super) fn next_status(&self) -> Option<Moment> {
        self.status.next()
    }

    /// How many bytes are buffered.
    pub(super) fn buffered(&self) -> usize {
        self.outputs.iter().map(|output| output.buffer.len()).sum()
    }

    /// Writes what is buffered; returns what cannot be written any more, each once.
    pub(super) fn flush(&mut self, now: Moment) -> Vec<String> {
        let below = &mut self.outputs[if self.is_one_file { 0 } else { 1 }];
        let columns = || columns_if_ours(below.fd.as_fd());
        self.status.put_around(&mut below.buffer, below.open.is_some(), now, columns);
        let mut broken = Vec::new();
        for (output, name) in self.outputs.iter_mut().zip(["stdout", "stderr"]) {
            let written =
                if output.is_broken { Ok(()) } else { write_all(output.fd.as_fd(), &output.buffer) };
            output.buffer.clear();
            if let Err(error) = written {
                output.is_broken = true;
                broken.push(format!("{name} takes no more output ({error}); workers' output to it is lost"));
            }
        }
        broken
    }
}

/// How wide a terminal is that this process has in its foreground.
fn columns_if_ours(terminal: BorrowedFd<'_>) -> Option<usize> {
    (foreground(terminal) == Some(group_id())).then(|| columns(terminal))
}
