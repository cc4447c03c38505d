//! From options to a job, and from its summary to an exit code.

use std::cell::RefCell;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use phalanx::Signal;
use phalanx::fault::Plan;
use phalanx::launch::{Command, Interpreter, Launch, LaunchError, RankStreams, Stdin, Summary};

use crate::options::RunOptions;
use crate::service::Services;

/// For what is wrong with the command line, as with every program.
const USAGE: u8 = 2;

pub(crate) fn run(options: RunOptions) -> ExitCode {
    let (quiet, dry_run) = (options.quiet, options.dry_run);
    let say = move |text: &str| {
        if !quiet {
            eprintln!("phalanx: {text}");
        }
    };
    let launch = match launch(&options) {
        Ok(launch) => launch,
        Err(error) => return refuse(&error, USAGE),
    };
    without_meaning(&options).into_iter().for_each(|note| say(&note));
    if dry_run {
        return describe(&launch);
    }
    let services = match Services::start(&options) {
        Ok(services) => Rc::new(RefCell::new(services)),
        Err(error) => return refuse(&error, 1),
    };
    let told = Rc::clone(&services);
    let launch = launch.announce(!quiet).on_event(move |event| told.borrow_mut().hear(event));
    match launch.run() {
        Ok(summary) => finish(&summary, &services.borrow(), say),
        Err(error) => refuse(&error, exit_code(&error)),
    }
}

fn refuse(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("phalanx: {error}");
    ExitCode::from(code)
}

/// 127 for a program that is not there and 126 for one that cannot be run, as with shells.
fn exit_code(error: &LaunchError) -> u8 {
    match error {
        LaunchError::Invalid { .. } => USAGE,
        LaunchError::Program { os, .. } if os.kind() == std::io::ErrorKind::NotFound => 127,
        LaunchError::Program { .. } => 126,
        _ => 1,
    }
}

fn describe(launch: &Launch) -> ExitCode {
    match launch.describe() {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error, exit_code(&error)),
    }
}

/// Says what became of the job; one that was stopped by a signal dies of it, as its parent expects.
fn finish(summary: &Summary, services: &Services, say: impl Fn(&str)) -> ExitCode {
    if summary.exit_code() == 0 {
        summary.faults.iter().for_each(|fault| say(&fault.to_string()));
    } else {
        let report = summary.to_string();
        services.record_failure(&report);
        print_report(report, summary.stopped_by.map(|_| LAST_OUTPUT));
    }
    if let Some(signal) = summary.stopped_by {
        phalanx::launch::die_of(signal);
    }
    ExitCode::from(u8::try_from(summary.exit_code()).unwrap_or(1))
}

/// How long a job that was told to stop waits for a console that does not take its report.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Writes the report to stderr. `patience`: for no longer than that; the process then ends while a thread still writes.
fn print_report(report: String, patience: Option<Duration>) {
    let Some(patience) = patience else { return eprint!("phalanx: {report}") };
    let (tell, told) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        eprint!("phalanx: {report}");
        drop(tell);
    });
    // The end of the thread closes the channel, which is an error of this wait, as is the end of the time.
    let _ = told.recv_timeout(patience);
}

fn invalid(what: String, hint: &str) -> LaunchError {
    LaunchError::Invalid { what, hint: hint.to_owned() }
}

fn launch(options: &RunOptions) -> Result<Launch, LaunchError> {
    one_node(options)?;
    let launch = Launch::new(program(options))
        .nproc(options.nproc_per_node.parse()?)
        .role(&options.role)
        .master_addr(&options.master_addr)
        .max_restarts(options.max_restarts)
        .shutdown_timeout(shutdown_timeout(options)?)
        .stop_signals(stop_signals(options)?)
        .handle_signals(true)
        .reachable(true)
        .status_line(!options.quiet)
        .virtual_local_rank(options.virtual_local_rank);
    optional(log_files(launch, options)?, options)
}

/// What is written to files; nothing, all to the console, where the directory is torchrun's /dev/null.
fn log_files(launch: Launch, options: &RunOptions) -> Result<Launch, LaunchError> {
    let redirects: RankStreams = options.redirects.parse()?;
    let tee: RankStreams = options.tee.parse()?;
    let dir = options.log_dir.as_deref();
    if dir == Some(Path::new("/dev/null")) {
        return Ok(launch);
    }
    let launch = dir.into_iter().fold(launch, Launch::log_dir);
    Ok(launch
        .redirects(redirects)
        .tee(tee)
        .filter_stdout(texts(options.duplicate_stdout_filters.as_deref()))
        .filter_stderr(texts(options.duplicate_stderr_filters.as_deref())))
}

/// Options that change nothing unless they are given.
fn optional(mut launch: Launch, options: &RunOptions) -> Result<Launch, LaunchError> {
    if let Some(binding) = &options.numa_binding {
        launch = launch.numa_binding(binding.parse()?);
    }
    if let Some(name) = &options.job_name {
        launch = launch.job_name(name);
    }
    if let Some(rank) = options.stdin {
        launch = launch.stdin(Stdin::Rank(rank));
    }
    if let Some(failures) = &options.restart_on {
        launch = launch.restart_on(failures.parse()?);
    }
    if let Some(text) = &options.faults {
        let plan: Plan = text
            .parse()
            .map_err(|error| invalid(format!("--faults: {error}"), "write it as kill@time=5s:rank=1"))?;
        launch = launch.faults(plan);
    }
    if let Some(file) = &options.summary {
        launch = launch.summary_file(file);
    }
    if let Some(ranks) = &options.local_ranks_filter {
        launch = launch.show_ranks(ranks.parse()?);
    }
    let from_environment = std::env::var("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE").ok();
    if let Some(template) = options.log_line_prefix_template.clone().or(from_environment) {
        launch = launch.prefix(template.parse()?);
    }
    if let Some(port) = options.master_port {
        launch = launch.master_port(port);
    }
    if let Some(id) = options.rdzv_id.as_ref().filter(|id| *id != "none") {
        launch = launch.run_id(id);
    }
    Ok(launch)
}

fn program(options: &RunOptions) -> Command {
    let (program, arguments) = options.program.split_first().expect("clap requires a program");
    let interpreter = match (options.module, options.no_python, options.run_path) {
        (true, ..) => Interpreter::PythonModule,
        (_, true, _) => Interpreter::None,
        (_, _, true) => Interpreter::Python,
        _ => Interpreter::Auto,
    };
    Command::new(program).args(arguments).interpreter(interpreter)
}

/// Several machines are refused; so is what contradicts one.
fn one_node(options: &RunOptions) -> Result<(), LaunchError> {
    let count = |text: &str| text.parse::<usize>().ok().filter(|&count| count > 0);
    let (least, most) = options.nnodes.split_once(':').unwrap_or((&options.nnodes, &options.nnodes));
    match (count(least), count(most)) {
        (Some(1), Some(1)) => {}
        (Some(least), Some(most)) if least <= most => {
            let what = format!("--nnodes {}: this version starts workers on one node only", options.nnodes);
            return Err(invalid(what, "leave it out, or start each node by a launcher of its own"));
        }
        _ => {
            return Err(invalid(
                format!("--nnodes {:?} is no number of nodes", options.nnodes),
                "write N or MIN:MAX",
            ));
        }
    }
    if let Some(rank) = options.node_rank.filter(|&rank| rank > 0) {
        return Err(invalid(
            format!("--node-rank {rank} is not among the ranks of one node"),
            "leave it out",
        ));
    }
    match options.rdzv_backend.as_deref() {
        None | Some("" | "static" | "c10d") => Ok(()),
        Some(other) => {
            let what = format!("--rdzv-backend {other} is not known on one node");
            Err(invalid(what, "static and c10d mean this node; or leave it out"))
        }
    }
}

fn shutdown_timeout(options: &RunOptions) -> Result<Duration, LaunchError> {
    const VARIABLE: &str = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT";
    let (name, text) = match (options.shutdown_timeout, std::env::var(VARIABLE)) {
        (Some(seconds), _) => ("--shutdown-timeout", seconds.to_string()),
        (None, Ok(text)) => (VARIABLE, text),
        (None, Err(_)) => return Ok(Duration::from_secs(30)),
    };
    let seconds = text.trim().parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| invalid(format!("{name} {text:?} is no time in seconds"), "give 0 or more"))
}

fn stop_signals(options: &RunOptions) -> Result<Vec<Signal>, LaunchError> {
    let from_environment = std::env::var("TORCHELASTIC_SIGNALS_TO_HANDLE").ok();
    let list = options.signals_to_handle.clone().or(from_environment);
    let list = list.unwrap_or_else(|| "SIGTERM,SIGINT,SIGHUP,SIGQUIT".to_owned());
    let signal = |name: &str| {
        Signal::from_name(name.trim()).ok_or_else(|| {
            invalid(format!("{name:?} in {list:?} is no signal"), "write a list such as SIGTERM,SIGINT")
        })
    };
    list.split(',').filter(|name| !name.trim().is_empty()).map(signal).collect()
}

/// `a,b,,c` is `a` and `b,c`.
fn texts(list: Option<&str>) -> Vec<String> {
    let list = list.unwrap_or_default().replace(",,", "\0");
    let texts = list.split(',').map(|text| text.replace('\0', ","));
    texts.filter(|text| !text.is_empty()).collect()
}

/// A sentence for each option that torchrun has and that does nothing here.
fn without_meaning(options: &RunOptions) -> Vec<String> {
    let given = [
        (
            "--rdzv-endpoint",
            options.rdzv_endpoint.as_ref().is_some_and(|text| !text.is_empty()),
            "one node needs no meeting place",
        ),
        (
            "--rdzv-conf",
            options.rdzv_conf.as_ref().is_some_and(|text| !text.is_empty()),
            "one node needs no meeting place",
        ),
        ("--local-addr", options.local_addr.is_some(), "one node needs no address of its own"),
        ("--monitor-interval", options.monitor_interval.is_some(), "a worker's end is an event, at once"),
        ("--start-method", options.start_method.is_some(), "a program is always started anew"),
        (
            "--event-log-handler",
            options.event_log_handler.is_some(),
            "--summary writes what became of the job",
        ),
        ("--logs-specs", options.logs_specs.is_some(), "it names code of Python's"),
    ];
    let given = given.into_iter().filter(|(_, is_given, _)| *is_given);
    given.map(|(name, _, why)| format!("{name} does nothing here: {why}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comma_is_written_twice() {
        assert_eq!(texts(Some("a,b,,c,")), ["a", "b,c"]);
        assert!(texts(None).is_empty());
    }
}
