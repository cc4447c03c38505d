//! Pure: lines, parts of lines and progress bars out of bytes.

/// A line that is longer is cut, so that a program that never ends one takes no memory.
const LONGEST: usize = 64 * 1024;

/// What is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// The end of a line, without its newline; `shown` says that a part before it was told as `Part`.
    Line { rest: &'a [u8], shown: bool },
    /// A part of a line that has not ended.
    Part(&'a [u8]),
    /// The newest state of a line that the program overwrites by carriage returns.
    Progress(&'a [u8]),
    /// The last state of such a line.
    LastProgress(&'a [u8]),
}

/// The line that has not ended yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    /// How much of it was told.
    shown: usize,
}

impl Lines {
    /// Tells the lines that end in `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8], mut tell: impl FnMut(Piece<'_>)) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[start..end];
            start = end + 1;
            if self.held.is_empty() && self.shown == 0 {
                tell(ended(line, 0));
            } else {
                self.held.extend_from_slice(line);
                tell(ended(&self.held, self.shown));
                self.reset();
            }
        }
        self.held.extend_from_slice(&bytes[start..]);
        if self.held.len() > LONGEST {
            tell(ended(&self.held, self.shown));
            self.reset();
        }
    }

    fn reset(&mut self) {
        self.held.clear();
        self.shown = 0;
    }

    /// Whether there is something that was not told.
    pub(super) fn is_waiting(&self) -> bool {
        self.held.len() > self.shown
    }

    /// Whether that is a state of a progress bar.
    pub(super) fn is_progress(&self) -> bool {
        self.held.contains(&b'\r')
    }

    /// Tells what has come of the line so far.
    pub(super) fn show(&mut self, tell: impl FnOnce(Piece<'_>)) {
        if !self.is_waiting() {
            return;
        }
        if self.is_progress() {
            // Only the newest state counts from now on. The carriage return stays, as the sign of what it is.
            let state = last_state(&self.held).to_vec();
            tell(Piece::Progress(&state));
            self.held = [b"\r", &state[..]].concat();
        } else {
            tell(Piece::Part(&self.held[self.shown..]));
        }
        self.shown = self.held.len();
    }

    /// Tells what is left, when nothing more will come.
    pub(super) fn finish(&mut self, tell: impl FnOnce(Piece<'_>)) {
        if !self.held.is_empty() {
            tell(ended(&self.held, self.shown));
            self.reset();
        }
    }
}

/// A line that has ended.
fn ended(line: &[u8], shown: usize) -> Piece<'_> {
    // The line ends of DOS.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match memchr::memchr(b'\r', line) {
        // The state that was shown last.
        Some(_) if shown >= line.len() => Piece::Line { rest: &[], shown: true },
        Some(_) => Piece::LastProgress(last_state(line)),
        None => Piece::Line { rest: &line[shown.min(line.len())..], shown: shown > 0 },
    }
}

/// What a terminal would show of it, more or less: the last part between carriage returns that is not empty.
fn last_state(line: &[u8]) -> &[u8] {
    line.rsplit(|&byte| byte == b'\r').find(|part| !part.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(piece: Piece<'_>) -> String {
        let (kind, bytes) = match piece {
            Piece::Line { rest, shown: false } => ("line", rest),
            Piece::Line { rest, shown: true } => ("rest", rest),
            Piece::Part(part) => ("part", part),
            Piece::Progress(state) => ("state", state),
            Piece::LastProgress(state) => ("last", state),
        };
        format!("{kind} {}", String::from_utf8_lossy(bytes))
    }

    /// Pushes each; `|` shows what waits.
    fn told(pushed: &[&str]) -> Vec<String> {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        for bytes in pushed {
            match *bytes {
                "|" => lines.show(|piece| told.push(text(piece))),
                bytes => lines.push(bytes.as_bytes(), |piece| told.push(text(piece))),
            }
        }
        lines.finish(|piece| told.push(text(piece)));
        told
    }

    #[test]
    fn line_waits_for_its_end() {
        assert_eq!(told(&["one\ntw", "o\n\nthree"]), ["line one", "line two", "line ", "line three"]);
    }

    #[test]
    fn part_that_was_shown_is_not_told_again() {
        assert_eq!(told(&["name: ", "|", "|", "bob\nnext\n"]), ["part name: ", "rest bob", "line next"]);
        assert_eq!(told(&["name: ", "|", "\n"]), ["part name: ", "rest "]);
    }

    #[test]
    fn of_a_progress_bar_the_newest_state_is_told() {
        assert_eq!(
            told(&["\r 10%", "\r 20%", "|", "\r 30%\r 40%", "|", "\r100%\n"]),
            ["state  20%", "state  40%", "last 100%"]
        );
        assert_eq!(told(&["a\rb\rc\n"]), ["last c"]);
        // A state that was shown stays the last one when only the newline follows.
        assert_eq!(told(&["\r 90%", "|", "\n"]), ["state  90%", "rest "]);
    }

    #[test]
    fn line_ends_of_dos_are_no_progress() {
        assert_eq!(told(&["one\r\ntwo\r", "\n"]), ["line one", "line two"]);
    }

    #[test]
    fn endless_line_is_cut() {
        let long = "x".repeat(LONGEST);
        assert_eq!(told(&[&long, "y", "z\n"]), [format!("line {long}y"), "line z".into()]);
    }

    proptest! {
        #[test]
        fn without_carriage_returns_no_byte_is_lost_or_moved(chunks in proptest::collection::vec("[a-c\n]{0,9}|\\|", 0..20)) {
            let chunks: Vec<_> = chunks.iter().map(String::as_str).collect();
            let mut shown = String::new();
            for told in told(&chunks) {
                let (kind, text) = told.split_once(' ').unwrap();
                shown.push_str(text);
                shown.push_str(if kind == "part" { "" } else { "\n" });
            }
            let whole: String = chunks.iter().filter(|&&chunk| chunk != "|").copied().collect();
            let whole = if whole.is_empty() || whole.ends_with('\n') { whole } else { whole + "\n" };
            prop_assert_eq!(shown, whole);
        }
    }
}
