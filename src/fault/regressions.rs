//! Plans that have failed, kept in a text file for each test.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use super::menu::Menu;
use super::trial::TrialError;
use super::{Plan, PlanError};

/// The file of a test. `None`: its thread has no name.
pub(super) struct Regressions(Option<PathBuf>);

impl Regressions {
    /// That of the calling thread, which the harness of tests names after the test.
    pub(super) fn of(menu: &Menu) -> Self {
        let thread = std::thread::current();
        let name = thread.name().filter(|&name| name != "main").map(|name| name.replace("::", "-"));
        Self(name.map(|name| menu.regressions.join(name + ".plan")))
    }

    /// The plans that were kept, each with where it is from, in words.
    pub(super) fn plans(&self) -> Vec<(String, Result<Plan, PlanError>)> {
        let Some(file) = &self.0 else { return Vec::new() };
        let origin = |number: usize| format!("the plan of line {} in {}", number + 1, file.display());
        match self.lines() {
            Ok(lines) => lines.into_iter().map(|(number, line)| (origin(number), line.parse())).collect(),
            Err(error) => {
                let error =
                    PlanError::System { doing: "read the plans that were kept", reason: error.to_string() };
                vec![(file.display().to_string(), Err(error))]
            }
        }
    }

    /// The lines that have a plan, by number. One that begins with # is a remark.
    fn lines(&self) -> io::Result<Vec<(usize, String)>> {
        let text = match self.0.as_ref().map(fs::read_to_string) {
            None => String::new(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Some(text) => text?,
        };
        let lines = text.lines().map(str::to_owned).enumerate();
        Ok(lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).collect())
    }

    /// Keeps the plan of a failure, and says where, or why it could not.
    pub(super) fn keep(&self, error: &TrialError) -> String {
        let (Some(file), TrialError::Wrong { plan, .. }) = (&self.0, error) else {
            return "the plan is kept in no file, since the thread has no name".to_owned();
        };
        match self.add(file, &plan.to_string()) {
            Ok(()) => format!("the plan is kept in {}", file.display()),
            Err(error) => format!("the plan could not be kept in {}: {error}", file.display()),
        }
    }

    fn add(&self, file: &PathBuf, plan: &str) -> io::Result<()> {
        if self.lines()?.iter().any(|(_, kept)| kept == plan) {
            return Ok(());
        }
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        writeln!(fs::OpenOptions::new().append(true).create(true).open(file)?, "{plan}")
    }
}
