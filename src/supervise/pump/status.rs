//! Pure: one line at the bottom of a terminal, below what is printed.

use std::time::Duration;

use crate::sys::clock::Moment;

/// Erases from the cursor to the end of the screen (ECMA-48, ED).
const ERASE: &[u8] = b"\x1b[J";
/// Makes room below the cursor, remembers where it is, and goes there: a line down, which scrolls at the bottom (IND), a line up, save
/// (DECSC), to the begin of the line below.
const GO_BELOW: &[u8] = b"\x1bD\x1b[A\x1b7\r\x1b[B";
/// Where it was (DECRC).
const GO_BACK: &[u8] = b"\x1b8";
/// How long it stays as it is, at least.
const STAYS: Duration = Duration::from_millis(100);

/// The line. The cursor is never left behind it: what others write begins where it would without it.
#[derive(Debug, Default)]
pub(super) struct StatusLine {
    text: Option<String>,
    is_drawn: bool,
    /// Whether it is to be drawn, or erased.
    is_due: bool,
    drawn: Option<Moment>,
}

impl StatusLine {
    /// From now on it says this, or is not there.
    pub(super) fn set(&mut self, text: Option<String>) {
        if self.text != text {
            self.text = text;
            self.is_due = true;
        }
    }

    /// When it is to be drawn.
    pub(super) fn next(&self) -> Option<Moment> {
        let next = self.drawn.map_or(Some(Moment::from_nanos(0)), |drawn| drawn.checked_add(STAYS));
        next.filter(|_| self.is_due)
    }

    /// Puts what erases it before what is to be written, and what draws it behind that. `is_open`: the last line that is written has
    /// not ended. `columns`: how wide the terminal is, if this process has it.
    pub(super) fn put_around(
        &mut self,
        written: &mut Vec<u8>,
        is_open: bool,
        now: Moment,
        columns: impl FnOnce() -> Option<usize>,
    ) {
        let may_draw = self.is_due && self.next().is_some_and(|next| next <= now);
        if self.is_drawn && (!written.is_empty() || may_draw || self.text.is_none()) {
            written.splice(0..0, ERASE.iter().copied());
            self.is_drawn = false;
            self.is_due = self.text.is_some();
        }
        let Some(text) = self.text.as_ref().filter(|_| may_draw) else {
            self.is_due &= self.text.is_some();
            return;
        };
        self.is_due = false;
        // In the background the terminal is another's; the next text is tried again.
        let Some(columns) = columns() else { return };
        // Not to the last column: some terminals would begin another line.
        let text: String = text.chars().take(columns.saturating_sub(1)).collect();
        if is_open {
            written.extend_from_slice(&[GO_BELOW, text.as_bytes(), GO_BACK].concat());
        } else {
            written.extend_from_slice(&[text.as_bytes(), b"\r"].concat());
        }
        (self.is_drawn, self.drawn) = (true, Some(now));
    }
}

/// Hours, minutes and seconds, for such a line.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written at a moment, in milliseconds, around some text; in the columns of the terminal.
    fn around(line: &mut StatusLine, text: &str, at: u64, columns: Option<usize>) -> String {
        let mut written = text.as_bytes().to_vec();
        let is_open = !text.is_empty() && !text.ends_with('\n');
        line.put_around(&mut written, is_open, Moment::from_nanos(at * 1_000_000), || columns);
        String::from_utf8(written).unwrap()
    }

    #[test]
    fn line_is_erased_before_others_are_written_and_drawn_again_ten_times_a_second_at_most() {
        let mut line = StatusLine::default();
        assert_eq!(around(&mut line, "a\n", 100, Some(80)), "a\n");
        line.set(Some("2/2 up".into()));
        assert_eq!(around(&mut line, "", 200, Some(80)), "2/2 up\r");
        assert_eq!(line.next(), None);
        assert_eq!(around(&mut line, "", 290, Some(80)), "");
        assert_eq!(around(&mut line, "b\n", 290, Some(80)), "\x1b[Jb\n");
        assert_eq!(line.next(), Some(Moment::from_nanos(300_000_000)));
        assert_eq!(around(&mut line, "c\n", 299, Some(80)), "c\n");
        assert_eq!(around(&mut line, "", 300, Some(80)), "2/2 up\r");
        // Below a line that has not ended, and cut to the terminal.
        assert_eq!(around(&mut line, "x..", 400, Some(5)), "\x1b[Jx..");
        assert_eq!(around(&mut line, "x..", 401, Some(5)), "x..\x1bD\x1b[A\x1b7\r\x1b[B2/2 \x1b8");
        line.set(Some("1/2 up".into()));
        assert_eq!(around(&mut line, "", 501, Some(80)), "\x1b[J1/2 up\r");
        line.set(None);
        assert_eq!(around(&mut line, "", 502, Some(80)), "\x1b[J");
        assert_eq!((around(&mut line, "d\n", 900, Some(80)), line.next()), ("d\n".into(), None));
    }

    #[test]
    fn line_is_not_drawn_while_the_terminal_is_anothers() {
        let mut line = StatusLine::default();
        line.set(Some("one".into()));
        assert_eq!((around(&mut line, "", 200, None), line.next()), (String::new(), None));
        line.set(Some("two".into()));
        assert_eq!(around(&mut line, "", 300, Some(80)), "two\r");
    }
}
