//! Pure: where a fault is to happen.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::text;

/// Where a rule of a plan is to happen.
///
/// | in a plan | where |
/// |---|---|
/// | `train.step` | at the point of that name |
/// | `train.` | at each point whose name begins so |
/// | `time=1.5s` | 1.5 s after the worker's start |
/// | `line=step_100` | when a line of its output contains the text; `_` stands for a blank |
/// | `file=ckpt/1.pt` | when a file of that path appears: it is made there, or moved there |
///
/// The last three need nothing from the program. Times and files are met by the worker itself where it runs a function, from its start on: a
/// file that another worker has made before is not met. With [`Launch::faults`](crate::launch::Launch::faults), and `phalanx run --faults`, they
/// are met by the launcher, which looks before any worker is started. Lines are read by that launcher alone.
///
/// In texts and paths a character that a shell or a plan would take for its own is written as `%`
/// and its number in hexadecimal: `%2C` is a comma, `%25` is `%`, and in a text `%5F` is `_`.
///
/// ```
/// use phalanx::fault::{Plan, Site};
///
/// let plan: Plan = "kill@line=epoch_2%2C_step_100".parse()?;
/// assert_eq!(plan.rules()[0].site(), &Site::Line("epoch 2, step 100".to_owned()));
/// # Ok::<(), phalanx::fault::PlanError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Site {
    /// At a point of this name, or at each whose name begins so if it ends in `.`.
    Point(String),
    /// At this time after the start of the worker.
    Time(Duration),
    /// When the worker has printed a line that contains this.
    Line(String),
    /// When a file of this path appears. A relative one lies in the worker's working directory at its start.
    File(PathBuf),
}

impl Site {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => point(text),
            Some(("time", time)) => Ok(Self::Time(text::duration(time)?)),
            Some(("line" | "file", "")) => Err(format!("`{text}` has no text")),
            Some(("line", line)) => {
                let blank = |c: char| if c == '_' { ' ' } else { c };
                let unescape = |part: &str| part.chars().map(blank).collect::<String>();
                Ok(Self::Line(unescaped(line, unescape)?))
            }
            Some(("file", path)) => match PathBuf::from(unescaped(path, str::to_owned)?) {
                path if path.file_name().is_some() => Ok(Self::File(path)),
                path => Err(format!("`{}` is no path of a file", path.display())),
            },
            Some((other, _)) => Err(text::unknown("site", &format!("{other}="), ["time=", "line=", "file="])),
        }
    }

    /// Whether a point of this name is meant.
    pub(super) fn is_at(&self, point: &str) -> bool {
        match self {
            Self::Point(prefix) if prefix.ends_with('.') => point.starts_with(prefix),
            Self::Point(name) => name == point,
            _ => false,
        }
    }
}

fn point(name: &str) -> Result<Site, String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name == "." || !name.chars().all(is_name) {
        return Err(format!(
            "`{name}` is no name of a point: these have lower-case letters, digits, `-` and `.`"
        ));
    }
    Ok(Site::Point(name.to_owned()))
}

/// Whether a character stands for itself in a text: no shell, YAML or batch script takes it for its own, and no plan.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-./=+@".contains(c)
}

/// Puts `%2C` for a comma, and so on; `plain`: what becomes of a character that stands for itself.
fn escaped(text: &str, plain: impl Fn(char) -> Option<char>) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match plain(c) {
            Some(c) => escaped.push(c),
            None => {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escaped.push_str(&format!("%{byte:02X}")))
            }
        }
    }
    escaped
}

/// The text without escapes; `plain` is what the parts between them mean.
fn unescaped(text: &str, plain: impl Fn(&str) -> String) -> Result<String, String> {
    let mut parts = text.split('%');
    let mut bytes = plain(parts.next().unwrap_or_default()).into_bytes();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
        let byte =
            u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2 && !digits.starts_with('+'));
        bytes.push(
            byte.ok_or_else(|| format!("`%{digits}` in `{text}` is no `%` and two hexadecimal digits"))?,
        );
        bytes.extend_from_slice(plain(rest).as_bytes());
    }
    if bytes.contains(&0) || bytes.contains(&b'\n') {
        return Err(format!("`{text}` has a zero byte or a newline, which no line and no path has"));
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is no UTF-8"))
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_path =
            |path: &Path| escaped(&path.to_string_lossy(), |c| (is_plain(c) || c == '_').then_some(c));
        let in_line = |c| if c == ' ' { Some('_') } else { Some(c).filter(|&c| is_plain(c)) };
        match self {
            Self::Point(name) => f.write_str(name),
            Self::Time(time) => write!(f, "time={}", text::of_duration(*time)),
            Self::Line(line) => write!(f, "line={}", escaped(line, in_line)),
            Self::File(path) => write!(f, "file={}", in_path(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn texts_and_paths_are_read_as_they_were_written(text in "[^\\x00\\n]{1,20}") {
            for site in [Site::Line(text.clone()), Site::File(format!("a{text}b").into())] {
                let printed = site.to_string();
                prop_assert_eq!(Site::parse(&printed), Ok(site));
                let needs_quotes = |c: char| c.is_whitespace() || ",:;$!()<>|&*'\"\\`#~?[]{}".contains(c);
                prop_assert!(!printed.contains(needs_quotes));
            }
        }
    }

    #[test]
    fn errors_say_what_was_meant() {
        for (text, expected) in [
            ("tiem=1s", "did you mean `time=`"),
            ("when=1s", "there are time= line= file="),
            ("time=1", "no time"),
            ("line=", "has no text"),
            ("line=a%2", "hexadecimal"),
            ("file=a%+1", "hexadecimal"),
            ("file=a%00", "zero byte"),
            ("line=%FF", "no UTF-8"),
            ("file=a/..", "no path of a file"),
        ] {
            let error = Site::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert_eq!(Site::parse("line=a_b%5fc").unwrap(), Site::Line("a b_c".to_owned()));
        assert_eq!(Site::Line("50 %, ä_b".to_owned()).to_string(), "line=50_%25%2C_%C3%A4%5Fb");
    }
}
