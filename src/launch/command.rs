//! Command: which program the workers run, and how.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::devices::Environment;
use super::error::{LaunchError, Result};

/// How the program of a [`Command`] is run: by itself, or by Python.
///
/// Python is the interpreter that `PYTHON_EXEC` names in the workers' environment, else `python3` or `python` of its `PATH`; it runs
/// unbuffered (`-u`), so that what a script prints is seen at once. This is as with torchrun.
///
/// ```
/// use phalanx::launch::{Command, Interpreter, Launch};
///
/// let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("train"), "exit 5")?;
/// let train = Command::new("train").interpreter(Interpreter::Python);
/// // Here a shell stands in for Python.
/// let launch = Launch::new(train).directory(dir.path()).env("PYTHON_EXEC", "sh");
/// assert_eq!(launch.run()?.exit_code(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interpreter {
    /// By Python if the program's name ends in `.py`, else by itself. The default. torchrun runs everything by Python unless it has
    /// `--no-python`.
    #[default]
    Auto,
    /// By itself, whatever its name: torchrun's `--no-python`.
    None,
    /// By Python, whatever its name: torchrun's `--run-path`.
    Python,
    /// By Python as a module (`python -m`): torchrun's `-m`, `--module`. The program is the module's name.
    PythonModule,
}

/// A program and its arguments, the same for all workers but for `${rank}` and `${local_rank}` in arguments, which stand for the
/// worker's. As text it is the command line, in quotes where a shell needs them.
///
/// No shell takes part: an argument reaches the program as it is.
///
/// ```
/// use phalanx::launch::Command;
/// let train = Command::new("train.py").args(["--device", "cuda:${local_rank}"]);
/// assert_eq!(train.to_string(), "train.py --device cuda:${local_rank}");
///
/// # use phalanx::launch::{Launch, Nproc};
/// let by_rank = Command::new("sh").args(["-c", "exit $1", "sh", "${rank}"]);
/// let summary = Launch::new(by_rank).nproc(Nproc::Count(2)).run()?;
/// assert_eq!(summary.exit_code(), 1);
/// # Ok::<(), phalanx::launch::LaunchError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
    pub(super) interpreter: Interpreter,
}

impl Command {
    /// A program without arguments: a path if there is a `/` in it, from the workers' [`directory`](super::Launch::directory); else a
    /// name that is looked up in the workers' `PATH`. A script that Python runs is always a path.
    ///
    /// It is looked up when the job is run. One that is not there or cannot be executed is
    /// [`LaunchError::Program`](super::LaunchError::Program).
    #[must_use]
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), interpreter: Interpreter::default() }
    }

    /// Adds arguments behind those that are there. Any bytes but zero are allowed.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Sets how the program is run; without this call, [`Interpreter::Auto`].
    #[must_use]
    pub fn interpreter(mut self, interpreter: Interpreter) -> Self {
        self.interpreter = interpreter;
        self
    }

    /// Whether Python runs it.
    fn is_python(&self) -> bool {
        let is_script = Path::new(&self.program).extension() == Some(OsStr::new("py"));
        match self.interpreter {
            Interpreter::Auto => is_script,
            Interpreter::None => false,
            Interpreter::Python | Interpreter::PythonModule => true,
        }
    }

    /// Finds the file that is executed, the interpreter's if there is one.
    ///
    /// # Errors
    /// [`LaunchError::Program`] when there is no such file, when it cannot be executed, or when a script cannot be read.
    pub(super) fn find(&self, environment: &Environment, directory: Option<&Path>) -> Result<Program> {
        if !self.is_python() {
            let file = lookup(&self.program, environment, directory).map_err(|os| {
                let hint = self.hint(&os).map(str::to_owned);
                LaunchError::Program { program: self.program.display().to_string(), hint, os }
            })?;
            return Ok(Program {
                file,
                first: vec![self.program.clone()],
                arguments: self.arguments.clone(),
            });
        }
        let module = self.interpreter == Interpreter::PythonModule;
        if !module {
            let script = directory.unwrap_or(Path::new("")).join(&self.program);
            fs::File::open(&script).map_err(|os| LaunchError::Program {
                program: script.display().to_string(),
                hint: Some("is the path right, from the working directory?".to_owned()),
                os,
            })?;
        }
        let (name, file) = python(environment, directory)?;
        let mut first: Vec<OsString> = vec![name, "-u".into()];
        first.extend(module.then(|| "-m".into()));
        first.push(self.program.clone());
        Ok(Program { file, first, arguments: self.arguments.clone() })
    }
}

impl Command {
    /// What to do about a program that is not run by Python and was not found.
    fn hint(&self, os: &io::Error) -> Option<&'static str> {
        let name = self.program.as_bytes();
        if self.interpreter == Interpreter::None && name.ends_with(b".py") {
            Some("without --no-python it is run by Python")
        } else if os.kind() == io::ErrorKind::NotFound && !name.contains(&b'/') {
            Some("no directory of the workers' PATH has it: give its path, such as ./name")
        } else {
            None
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
        f.write_str(&words.join(" "))
    }
}

/// A word as a shell would read it, in quotes only where it needs them.
pub(super) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=,+@%${}".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What is executed in each worker: a [`Command`] that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// What execve(2) is given.
    pub(super) file: PathBuf,
    /// The name by which it is called, and what comes before the user's arguments.
    first: Vec<OsString>,
    /// The user's, in which `${rank}` is not replaced yet.
    arguments: Vec<OsString>,
}

impl Program {
    /// A file, with words in which nothing is replaced.
    pub(super) fn as_it_is(file: &CStr, words: Vec<OsString>) -> Self {
        Self { file: OsStr::from_bytes(file.to_bytes()).into(), first: words, arguments: Vec::new() }
    }

    /// All words of a worker's command line.
    pub(super) fn words(&self, rank: usize, local_rank: usize) -> Vec<OsString> {
        let replace = |argument: &OsString| {
            let bytes = replaced(argument.as_bytes(), b"${local_rank}", local_rank);
            OsString::from_vec(replaced(&bytes, b"${rank}", rank))
        };
        self.first.iter().cloned().chain(self.arguments.iter().map(replace)).collect()
    }
}

/// A text with a value in each place of a name.
fn replaced(text: &[u8], name: &[u8], value: usize) -> Vec<u8> {
    let value = value.to_string();
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, name) {
        parts.extend_from_slice(&rest[..at]);
        parts.extend_from_slice(value.as_bytes());
        rest = &rest[at + name.len()..];
    }
    [&parts[..], rest].concat()
}

/// A C string of an argument, a variable or a path.
///
/// # Errors
/// [`LaunchError::Invalid`] when there is a zero byte in it.
pub(super) fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| {
        let what = format!("{text:?} has a zero byte in it");
        LaunchError::invalid(what, "no argument, variable or path can have one")
    })
}

/// The interpreter: the name by which it is called, and its file.
fn python(environment: &Environment, directory: Option<&Path>) -> Result<(OsString, PathBuf)> {
    let chosen = environment.get(OsStr::new("PYTHON_EXEC")).filter(|chosen| !chosen.is_empty());
    let names = chosen.map_or_else(|| vec!["python3".into(), "python".into()], |chosen| vec![chosen.clone()]);
    let mut first = None;
    for name in names {
        match lookup(&name, environment, directory) {
            Ok(file) => return Ok((name, file)),
            Err(os) => first = first.or(Some((name, os))),
        }
    }
    let (name, os) = first.unwrap_or_else(|| ("python3".into(), io::ErrorKind::NotFound.into()));
    let hint = Some("set PYTHON_EXEC to the interpreter, or use --no-python".to_owned());
    Err(LaunchError::Program { program: name.display().to_string(), hint, os })
}

/// The file that a name means: a path with a slash is itself, another name is looked for in `PATH`, as execvp(3) does.
fn lookup(name: &OsStr, environment: &Environment, directory: Option<&Path>) -> io::Result<PathBuf> {
    let base = directory.unwrap_or(Path::new(""));
    if name.as_bytes().contains(&b'/') {
        let path = base.join(name);
        return check(&path).map(|()| path);
    }
    let mut error = io::Error::from_raw_os_error(crate::sys::dir::NOT_FOUND);
    if name.is_empty() {
        return Err(error);
    }
    let path = environment.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| "/bin:/usr/bin".into());
    for dir in std::env::split_paths(&path) {
        // An empty entry means the working directory.
        let candidate = base.join(dir).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(found) if found.kind() == io::ErrorKind::PermissionDenied => error = found,
            Err(_) => {}
        }
    }
    Err(error)
}

/// Whether a file can be executed, as far as its kind and the rights to it tell.
///
/// # Errors
/// The error that execve(2) would have.
fn check(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::from_raw_os_error(crate::sys::exec::NOT_EXECUTABLE));
    }
    crate::sys::exec::may_execute(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("PATH".into(), "/nowhere:/usr/bin:/bin".into())].into()
    }

    fn words(command: &Command) -> Vec<String> {
        let program = command.find(&environment(), None).unwrap();
        program.words(5, 1).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn local_rank_is_put_into_arguments() {
        let command = Command::new("sh").args(["${local_rank}", "a${local_rank}${rank}b", "$local_rank"]);
        assert_eq!(words(&command), ["sh", "1", "a15b", "$local_rank"]);
    }

    #[test]
    fn scripts_run_by_an_unbuffered_python() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("train.py");
        fs::write(&script, "").unwrap();
        let path = script.to_str().unwrap();
        let mut environment = environment();
        environment.insert("PYTHON_EXEC".into(), "/bin/sh".into());
        let words = |command: Command| {
            let program = command.find(&environment, None).unwrap();
            assert_eq!(program.file, Path::new("/bin/sh"));
            program.words(0, 0).into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(words(Command::new(path).args(["x"])), ["/bin/sh", "-u", path, "x"]);
        let module = Command::new("pkg.train").interpreter(Interpreter::PythonModule);
        assert_eq!(words(module), ["/bin/sh", "-u", "-m", "pkg.train"]);
    }

    #[test]
    fn program_that_is_not_there_is_told_with_a_hint() {
        let error = |command: Command| command.find(&environment(), None).unwrap_err().to_string();
        assert_eq!(
            error(Command::new("no-program-has-this-name")),
            "cannot run no-program-has-this-name: No such file or directory (os error 2); no directory of the workers' \
             PATH has it: give its path, such as ./name"
        );
        let script = error(Command::new("/nowhere/train.py"));
        assert!(
            script.contains("/nowhere/train.py: No such file") && script.contains("is the path right"),
            "{script}"
        );
        let as_program = Command::new("/nowhere/train.py").interpreter(Interpreter::None);
        assert!(error(as_program).contains("without --no-python"));
        assert!(error(Command::new("/dev/null")).contains("Permission denied"));
    }

    #[test]
    fn words_are_shown_as_a_shell_would_read_them() {
        let command = Command::new("sh").args(["-c", "echo 'x'", ""]);
        assert_eq!(command.to_string(), r"sh -c 'echo '\''x'\''' ''");
    }
}
