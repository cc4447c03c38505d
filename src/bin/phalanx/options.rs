//! The options of `phalanx run`: all 32 of torchrun, and our own.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// Fields that have torchrun's meaning have torchrun's name and default.
#[derive(Args, Debug)]
#[command(
    override_usage = "phalanx run [OPTIONS] PROGRAM [ARGUMENTS]...",
    after_help = "Each option but --faults has a default in the environment: PHALANX_NPROC_PER_NODE, else torchrun's PET_NPROC_PER_NODE, and so on."
)]
pub(crate) struct RunOptions {
    /// Workers on this node: a number, or auto (GPUs, else CPUs), cpu, gpu, xpu
    #[arg(long, default_value = "1", value_name = "N", help_heading = "Workers")]
    pub(crate) nproc_per_node: String,
    /// Nodes; only one so far
    #[arg(long, default_value = "1:1", value_name = "N|MIN:MAX", help_heading = "Workers")]
    pub(crate) nnodes: String,
    /// Run PROGRAM as a Python module
    #[arg(short = 'm', long, conflicts_with_all = ["no_python", "run_path"], help_heading = "Workers")]
    pub(crate) module: bool,
    /// Run PROGRAM as it is, whatever its name
    #[arg(long, conflicts_with = "run_path", help_heading = "Workers")]
    pub(crate) no_python: bool,
    /// Run PROGRAM by Python, whatever its name
    #[arg(long, help_heading = "Workers")]
    pub(crate) run_path: bool,
    /// The workers' role, in their prefix and ROLE_NAME
    #[arg(long, default_value = "default", value_name = "NAME", help_heading = "Workers")]
    pub(crate) role: String,
    /// Each worker sees one GPU, and has LOCAL_RANK 0
    #[arg(long, help_heading = "Workers")]
    pub(crate) virtual_local_rank: bool,
    /// Bind each worker to processors near its GPU: node, socket, exclusive, core-complex
    #[arg(long, value_name = "HOW", help_heading = "Workers")]
    pub(crate) numa_binding: Option<String>,
    /// The job's name, for phalanx ps, stop and logs [default: the rdzv id, or four letters]
    #[arg(long, value_name = "NAME", help_heading = "Workers")]
    pub(crate) job_name: Option<String>,
    /// The rank that reads stdin; otherwise the only worker
    #[arg(long, value_name = "RANK", help_heading = "Workers")]
    pub(crate) stdin: Option<usize>,

    /// Restarts of all workers after a failure
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        help_heading = "Failures",
        allow_negative_numbers = true
    )]
    pub(crate) max_restarts: usize,
    /// Restart only after these exit codes and signals, as 1,100-120,SIGKILL
    #[arg(long, value_name = "LIST", help_heading = "Failures")]
    pub(crate) restart_on: Option<String>,
    /// Seconds between SIGTERM and SIGKILL [default: TORCH_ELASTIC_SHUTDOWN_TIMEOUT, or 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Failures", allow_negative_numbers = true)]
    pub(crate) shutdown_timeout: Option<f64>,
    /// Signals that stop the job [default: TORCHELASTIC_SIGNALS_TO_HANDLE, or SIGTERM,SIGINT,SIGHUP,SIGQUIT]
    #[arg(long, value_name = "LIST", help_heading = "Failures")]
    pub(crate) signals_to_handle: Option<String>,
    /// Have faults happen on purpose, as kill@time=5s:rank=1 or stop@line=step_100; no variable stands for it
    #[arg(long, value_name = "PLAN", help_heading = "Failures")]
    pub(crate) faults: Option<String>,
    /// Write what became of the job to a file, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Failures")]
    pub(crate) summary: Option<PathBuf>,
    /// Where Kubernetes reads why a container failed [default: /dev/termination-log, where it is there]
    #[arg(long, value_name = "FILE", help_heading = "Failures")]
    pub(crate) termination_log: Option<PathBuf>,
    /// Answer HTTP with 200 while all workers run, else with 503 [default: TORCHELASTIC_HEALTH_CHECK_PORT]
    #[arg(long, value_name = "PORT", help_heading = "Failures")]
    pub(crate) health_port: Option<u16>,

    /// Directory for logs
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(crate) log_dir: Option<PathBuf>,
    /// Streams that go to files only: 0 none, 1 stdout, 2 stderr, 3 both; for some ranks: 0:1,8-11:3
    #[arg(short = 'r', long, default_value = "0", value_name = "STREAMS", help_heading = "Output")]
    pub(crate) redirects: String,
    /// Streams that go to files and to the console
    #[arg(short = 't', long, default_value = "0", value_name = "STREAMS", help_heading = "Output")]
    pub(crate) tee: String,
    /// Show these ranks on the console only, as 0-3,12
    #[arg(long, value_name = "RANKS", help_heading = "Output")]
    pub(crate) local_ranks_filter: Option<String>,
    /// What stands before each line: ${role_name}, ${rank}, ${local_rank}, ${hostname} [default: [${role_name}${rank}]:]
    #[arg(long, value_name = "TEMPLATE", help_heading = "Output")]
    pub(crate) log_line_prefix_template: Option<String>,
    /// Texts whose lines of stdout go to one file too; a comma is written ,,
    #[arg(long, value_name = "TEXTS", help_heading = "Output")]
    pub(crate) duplicate_stdout_filters: Option<String>,
    /// The same for stderr
    #[arg(long, value_name = "TEXTS", help_heading = "Output")]
    pub(crate) duplicate_stderr_filters: Option<String>,
    /// Print no notes of the launcher's own
    #[arg(short = 'q', long, help_heading = "Output")]
    pub(crate) quiet: bool,
    /// Print what would be started, and start nothing
    #[arg(long, help_heading = "Output")]
    pub(crate) dry_run: bool,

    /// Where workers find rank 0
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS", help_heading = "Rendezvous")]
    pub(crate) master_addr: String,
    /// The port on which rank 0 listens [default: a free one for each attempt]
    #[arg(long, value_name = "PORT", help_heading = "Rendezvous")]
    pub(crate) master_port: Option<u16>,
    /// The job's id
    #[arg(long, value_name = "ID", help_heading = "Rendezvous")]
    pub(crate) rdzv_id: Option<String>,
    /// static, c10d
    #[arg(long, value_name = "NAME", help_heading = "Rendezvous")]
    pub(crate) rdzv_backend: Option<String>,
    /// Nothing on one node
    #[arg(long, value_name = "HOST:PORT", help_heading = "Rendezvous")]
    pub(crate) rdzv_endpoint: Option<String>,
    /// Nothing on one node
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Rendezvous")]
    pub(crate) rdzv_conf: Option<String>,
    /// One node, by itself; so it is anyway
    #[arg(long, help_heading = "Rendezvous")]
    pub(crate) standalone: bool,
    /// This node's rank; only 0 so far
    #[arg(long, value_name = "RANK", help_heading = "Rendezvous")]
    pub(crate) node_rank: Option<usize>,
    /// Nothing on one node
    #[arg(long, value_name = "ADDRESS", help_heading = "Rendezvous")]
    pub(crate) local_addr: Option<String>,

    /// Nothing: ends are events, not polled
    #[arg(long, value_name = "SECONDS", help_heading = "Without meaning here")]
    pub(crate) monitor_interval: Option<f64>,
    /// Nothing: programs are always started anew
    #[arg(long, value_name = "METHOD", help_heading = "Without meaning here")]
    pub(crate) start_method: Option<String>,
    /// Nothing: see --summary
    #[arg(long, value_name = "NAME", help_heading = "Without meaning here")]
    pub(crate) event_log_handler: Option<String>,
    /// Nothing: an entry point of Python
    #[arg(long, value_name = "NAME", help_heading = "Without meaning here")]
    pub(crate) logs_specs: Option<String>,

    /// Print the completions of a shell, as phalanx completions does
    #[arg(long, value_name = "SHELL", hide_possible_values = true)]
    pub(crate) print_completion: Option<clap_complete::Shell>,

    /// The program, and its arguments
    #[arg(required_unless_present = "print_completion", trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}
