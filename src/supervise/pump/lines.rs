//! Pure: lines, parts of lines and progress bars out of bytes.

use std::borrow::Cow;

/// A line that is longer is cut, so that a program that never ends one takes no memory.
const LONGEST: usize = 64 * 1024;

const ESCAPE: u8 = 0x1b;
/// One line up.
const UP: &[u8] = b"\x1b[A";

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
            if self.held.is_empty() && self.shown == 0 && !line.ends_with(UP) {
                tell(ended(line, 0));
                continue;
            }
            self.held.extend_from_slice(line);
            if self.held.ends_with(UP) {
                // A bar below another one, of tqdm: the cursor is where this line began.
                self.held.truncate(self.held.len() - UP.len());
                self.shown = self.shown.min(self.held.len());
                self.held.push(b'\r');
            } else {
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
            if state != shown_state(&self.held, self.shown) {
                tell(Piece::Progress(&state));
            }
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
        Some(_) if last_state(line) == shown_state(line, shown) => {
            Piece::Line { rest: &[], shown: shown > 0 }
        }
        Some(_) => Piece::LastProgress(last_state(line)),
        None => Piece::Line { rest: &line[shown.min(line.len())..], shown: shown > 0 },
    }
}

/// The last part between carriage returns that is not blank, as a bar is that has been wiped out.
fn last_state(line: &[u8]) -> &[u8] {
    line.rsplit(|&byte| byte == b'\r').find(|part| !is_blank(part)).unwrap_or_default()
}

fn is_blank(part: &[u8]) -> bool {
    without_moves(part).trim_ascii().is_empty()
}

/// The state that was shown last; it is kept behind a carriage return.
fn shown_state(line: &[u8], shown: usize) -> &[u8] {
    let shown = &line[..shown.min(line.len())];
    shown.strip_prefix(b"\r").unwrap_or(shown)
}

/// A text without what moves the cursor, erases, or hides something (ECMA-48): on a console that several programs share it would hit
/// the prefix and the lines of others. Colours stay.
pub(super) fn without_moves(text: &[u8]) -> Cow<'_, [u8]> {
    let mut rest = text;
    let mut kept = Vec::new();
    while let Some(at) = memchr::memchr(ESCAPE, rest) {
        let (length, stays) = sequence(&rest[at..]);
        kept.extend_from_slice(&rest[..if stays { at + length } else { at }]);
        rest = &rest[at + length..];
    }
    if rest.len() == text.len() { Cow::Borrowed(text) } else { Cow::Owned([&kept, rest].concat()) }
}

/// The length of the control sequence with which a text begins, and whether it may stay.
fn sequence(text: &[u8]) -> (usize, bool) {
    match text.get(1) {
        Some(b'[') => match text.iter().skip(2).position(|byte| !(0x20..0x40).contains(byte)) {
            Some(end) => (end + 3, text[end + 2] == b'm'),
            // Its end has not come yet.
            None => (text.len(), true),
        },
        // Save, restore, scroll, reset.
        Some(b'7' | b'8' | b'D' | b'E' | b'M' | b'c') => (2, false),
        _ => (1, true),
    }
}

/// The last lines of a text; of a progress bar only its last state.
pub(crate) fn last_lines(bytes: &[u8], most: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut take = |piece: Piece<'_>| {
        if let Piece::Line { rest, .. } | Piece::LastProgress(rest) = piece {
            found.push(String::from_utf8_lossy(&without_moves(rest)).into_owned());
        }
    };
    let mut lines = Lines::default();
    lines.push(bytes, &mut take);
    lines.finish(&mut take);
    found.split_off(found.len().saturating_sub(most))
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
    fn state_that_was_shown_is_not_told_again_and_a_blank_one_never() {
        // tqdm wipes out a bar that is not to stay.
        assert_eq!(told(&["\r 90%", "|", "\r    \r", "|", "\n"]), ["state  90%", "rest "]);
        assert_eq!(told(&["\r", "|", "\r  ", "|", "\r 5%", "|"]), ["state  5%", "rest "]);
        assert_eq!(told(&["part", "|", "\rmore\n"]), ["part part", "last more"]);
    }

    #[test]
    fn bar_below_another_one_is_a_bar() {
        let pushed =
            ["all 0%\n", "\r 10%\x1b[A\n\r 20%\x1b[A", "|", "\n\r 30%\x1b[A\n", "\r   \x1b[A\rall 50%\n"];
        assert_eq!(told(&pushed), ["line all 0%", "state  20%\x1b[A", "last all 50%"]);
    }

    #[test]
    fn only_colours_stay_of_control_sequences() {
        let plain = |text: &str| String::from_utf8(without_moves(text.as_bytes()).into_owned()).unwrap();
        assert_eq!(plain("\x1b[2K\x1b[31;1mred\x1b[0m\x1b[A"), "\x1b[31;1mred\x1b[0m");
        assert_eq!(plain("\x1b[?25l a\x1b7b\x1b[10;2Hc"), " abc");
        // One whose end has not come yet, and one that is not known.
        for stays in ["a\x1b[3", "\x1b]0;title", "none", ""] {
            assert_eq!(plain(stays), stays);
        }
    }

    #[test]
    fn line_ends_of_dos_are_no_progress() {
        assert_eq!(told(&["one\r\ntwo\r", "\n"]), ["line one", "line two"]);
    }

    #[test]
    fn last_lines_are_the_newest_states() {
        assert_eq!(last_lines(b"one\ntwo\r\n 1%\r 2%\r\n\xff", 3), ["two", " 2%", "\u{fffd}"]);
        assert_eq!(last_lines(b"one\n", 3), ["one"]);
        assert!(last_lines(b"one\n", 0).is_empty());
        // A report is read on a terminal too.
        assert_eq!(last_lines(b"\r 1%\x1b[A\n\r\x1b[2K 2%\n\x1b[?25hend", 3), [" 2%", "end"]);
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
