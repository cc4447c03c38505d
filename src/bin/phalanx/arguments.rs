//! The command line: torchrun's spellings, and defaults from the environment.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::{Command, FromArgMatches, Subcommand};

use crate::jobs::{LogsOptions, PsOptions, StopOptions};
use crate::options::RunOptions;

/// What the user wants.
pub(crate) enum Action {
    Run(Box<RunOptions>),
    /// Of the command of this name.
    Completions(clap_complete::Shell, &'static str),
    /// The page of a command.
    Man(Box<Command>),
    Ps(PsOptions),
    Stop(StopOptions),
    Logs(LogsOptions),
}

#[derive(Subcommand)]
enum Commands {
    /// Start a program many times on this machine, watch it, and say how it ended
    Run(Box<RunOptions>),
    /// List the running jobs of this user
    Ps(PsOptions),
    /// End a running job, and wait until nothing of it is left
    Stop(StopOptions),
    /// Print what the workers of a running job have printed
    Logs(LogsOptions),
    /// Print the completions of a shell
    Completions { shell: clap_complete::Shell },
    /// Print a manual page
    Man {
        /// Of this command, as run; else of the program
        command: Option<String>,
    },
}

const PHALANX: &str = "phalanx";
/// Torchrun's name: started by it, the program is `phalanx run`.
const TORCHRUN: &str = "torchrun";
/// Options for which torchrun has no variable.
const WITHOUT_PET: [&str; 3] = ["numa-binding", "logs-specs", "print-completion"];

/// Options without any variable: one that was left behind in an environment is to shoot at no job.
const WITHOUT_VARIABLE: [&str; 1] = ["faults"];

/// The whole command line, with an alias for each spelling.
pub(crate) fn command() -> Command {
    let command = Command::new(PHALANX)
        .version(env!("CARGO_PKG_VERSION"))
        .about("Starts worker processes, watches them, and says exactly how each one ended")
        .subcommand_required(true)
        .arg_required_else_help(true);
    Commands::augment_subcommands(command).mut_subcommand("run", |run| {
        run.args_override_self(true).mut_args(|arg| match arg.get_long() {
            Some(long) if long.contains('-') => {
                let other = long.replace('-', "_");
                arg.alias(other)
            }
            _ => arg,
        })
    })
}

/// The command line of the program under one of its names.
pub(crate) fn command_of(name: &str) -> Command {
    let whole = command();
    match whole.find_subcommand("run") {
        Some(run) if name == TORCHRUN => run.clone(),
        _ => whole,
    }
}

/// The command whose page is wanted, under the name by which it is called.
fn page_of(name: Option<&str>) -> Result<Command, clap::Error> {
    let whole = command();
    let Some(name) = name else { return Ok(whole) };
    match whole.find_subcommand(name) {
        Some(found) => {
            Ok(found.clone().name(format!("{PHALANX}-{name}")).bin_name(format!("{PHALANX} {name}")))
        }
        None => {
            Err(command()
                .error(clap::error::ErrorKind::InvalidValue, format!("there is no command {name:?}")))
        }
    }
}

/// Takes the arguments apart. `variable` is the environment.
pub(crate) fn parse(
    mut arguments: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Action, clap::Error> {
    let is_torchrun =
        arguments.first().and_then(|name| Path::new(name).file_name()) == Some(OsStr::new(TORCHRUN));
    if is_torchrun {
        arguments.insert(1, "run".into());
    }
    // Built once: that is most of what the command line costs.
    let command = command();
    if arguments.get(1).is_some_and(|argument| argument == "run")
        && let Some(run) = command.find_subcommand("run")
    {
        let defaults = defaults(run, &variable);
        arguments.splice(2..2, defaults);
    }
    let matches = command.try_get_matches_from(arguments)?;
    match Commands::from_arg_matches(&matches)? {
        Commands::Run(options) => Ok(match options.print_completion {
            Some(shell) => Action::Completions(shell, if is_torchrun { TORCHRUN } else { PHALANX }),
            None => Action::Run(options),
        }),
        Commands::Completions { shell } => Ok(Action::Completions(shell, PHALANX)),
        Commands::Man { command } => Ok(Action::Man(Box::new(page_of(command.as_deref())?))),
        Commands::Ps(options) => Ok(Action::Ps(options)),
        Commands::Stop(options) => Ok(Action::Stop(options)),
        Commands::Logs(options) => Ok(Action::Logs(options)),
    }
}

/// What the environment says, as options before those of the command line, which therefore win.
fn defaults(run: &Command, variable: &impl Fn(&str) -> Option<OsString>) -> Vec<OsString> {
    let mut found = Vec::new();
    let options =
        run.get_arguments().filter_map(|arg| Some((arg.get_long()?, !arg.get_action().takes_values())));
    for (long, is_flag) in options.filter(|(long, _)| !WITHOUT_VARIABLE.contains(long)) {
        let name = long.replace('-', "_").to_uppercase();
        let pet = || variable(&format!("PET_{name}")).filter(|_| !WITHOUT_PET.contains(&long));
        let Some(value) = variable(&format!("PHALANX_{name}")).or_else(pet) else { continue };
        let mut option = OsString::from(format!("--{long}"));
        if !is_flag {
            option.push("=");
            option.push(value);
            found.push(option);
        } else if value == "1" {
            found.push(option);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str], variables: &[(&str, &str)]) -> Result<RunOptions, String> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        match parse(words.iter().map(Into::into).collect(), variable) {
            Ok(Action::Run(options)) => Ok(*options),
            Ok(_) => panic!("another command"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn both_spellings_and_torchruns_name_are_known() {
        for words in [
            ["phalanx", "run", "--nproc-per-node", "4", "x.py"].as_slice(),
            &["phalanx", "run", "--nproc_per_node=4", "x.py"],
            &["/usr/bin/torchrun", "--nproc_per_node", "4", "x.py"],
        ] {
            assert_eq!(options(words, &[]).unwrap().nproc_per_node, "4");
        }
    }

    #[test]
    fn what_follows_the_program_is_the_programs() {
        let options =
            options(&["phalanx", "run", "-r", "3", "x.py", "--nnodes", "7", "-t", "--", "y"], &[]).unwrap();
        let words: Vec<_> = options.program.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!((&*options.nnodes, words), ("1:1", vec!["x.py", "--nnodes", "7", "-t", "--", "y"]));
    }

    #[test]
    fn variables_are_defaults_ours_before_torchruns_and_the_command_line_wins() {
        let both = [
            ("PET_NPROC_PER_NODE", "2"),
            ("PHALANX_NPROC_PER_NODE", "3"),
            ("PET_STANDALONE", "1"),
            ("PET_NO_PYTHON", "0"),
        ];
        let by_variables = options(&["phalanx", "run", "x"], &both).unwrap();
        assert_eq!(by_variables.nproc_per_node, "3");
        assert!(by_variables.standalone && !by_variables.no_python);
        let by_option = options(&["phalanx", "run", "--nproc-per-node", "8", "x"], &both).unwrap();
        assert_eq!(by_option.nproc_per_node, "8");
        // torchrun has no variable for this one.
        assert_eq!(
            options(&["phalanx", "run", "x"], &[("PET_NUMA_BINDING", "node")]).unwrap().numa_binding,
            None
        );
    }

    #[test]
    fn unknown_option_is_refused_with_a_hint() {
        let error = options(&["phalanx", "run", "--nproc-per-nod", "2", "x"], &[]).unwrap_err();
        assert!(error.contains("--nproc-per-node"), "{error}");
        assert!(options(&["phalanx", "run", "--nnodes", "1"], &[]).unwrap_err().contains("PROGRAM"));
    }
}
