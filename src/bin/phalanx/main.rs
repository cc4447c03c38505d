//! `phalanx run`: torchrun's job, done by the library's `launch` module; and commands that see and reach jobs that run.
//!
//! - `arguments`: the command line, with torchrun's spellings and environment defaults
//! - `options`: the options of `run`
//! - `run`: from options to a job, and from its summary to an exit code
//! - `jobs`: `phalanx ps`, `phalanx stop`, `phalanx logs`
//! - `service`: systemd's notifications, the health port and the termination log

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program speaks to its user")]

mod arguments;
mod jobs;
mod options;
mod run;
mod service;

use std::process::ExitCode;

use arguments::Action;

fn main() -> ExitCode {
    match arguments::parse(std::env::args_os().collect(), |name| std::env::var_os(name)) {
        Ok(Action::Run(options)) => run::run(*options),
        Ok(Action::Completions(shell, name)) => {
            clap_complete::generate(shell, &mut arguments::command_of(name), name, &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Ok(Action::Man(command)) => man(&command),
        Ok(Action::Ps(options)) => jobs::end(jobs::ps(&options)),
        Ok(Action::Stop(options)) => jobs::end(jobs::stop(&options)),
        Ok(Action::Logs(options)) => jobs::end(jobs::logs(&options)),
        Err(error) => {
            // An error means that stdout is closed.
            let _ = error.print();
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

fn man(command: &clap::Command) -> ExitCode {
    match clap_mangen::Man::new(command.clone()).render(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("phalanx: the page cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}
