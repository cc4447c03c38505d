//! `phalanx run`: each option of torchrun's, and what it means to the workers.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

mod common;
mod launcher;

use common::watched;
use launcher::{Place, Ran, Running, workers};
use phalanx::launch::RankList;

/// All options of torchrun 2.15, each with a value that one node can have.
const TORCHRUN: [(&str, Option<&str>); 32] = [
    ("nnodes", Some("1:1")),
    ("nproc-per-node", Some("2")),
    ("rdzv-backend", Some("c10d")),
    ("rdzv-endpoint", Some("localhost:0")),
    ("rdzv-id", Some("none")),
    ("rdzv-conf", Some("timeout=3,k=v")),
    ("standalone", None),
    ("max-restarts", Some("3")),
    ("monitor-interval", Some("0.1")),
    ("start-method", Some("spawn")),
    ("event-log-handler", Some("null")),
    ("role", Some("trainer")),
    ("module", None),
    ("no-python", None),
    ("run-path", None),
    ("log-dir", Some("logs")),
    ("redirects", Some("0:1,1:2")),
    ("tee", Some("3")),
    ("local-ranks-filter", Some("0,1")),
    ("log-line-prefix-template", Some("${rank}")),
    ("duplicate-stdout-filters", Some("a,,b")),
    ("duplicate-stderr-filters", Some("a")),
    ("logs-specs", Some("default")),
    ("node-rank", Some("0")),
    ("master-addr", Some("127.0.0.1")),
    ("master-port", Some("29500")),
    ("local-addr", Some("127.0.0.1")),
    ("numa-binding", Some("node")),
    ("signals-to-handle", Some("SIGTERM,SIGINT")),
    ("shutdown-timeout", Some("30")),
    ("virtual-local-rank", None),
    ("print-completion", Some("bash")),
];

#[test]
fn each_option_of_torchrun_is_taken_in_both_spellings_and_as_a_variable() {
    watched(|| {
        let place = Place::new();
        place.script("train.py", "");
        fs::set_permissions(place.path("train.py"), fs::Permissions::from_mode(0o755)).unwrap();
        // In the place of Python; and GPUs for those that want one each.
        let run = |command: &mut Command| {
            let command = command.env("PYTHON_EXEC", "/bin/sh").env("CUDA_VISIBLE_DEVICES", "0,1");
            place.end(command)
        };
        for (option, value) in TORCHRUN {
            for option in [option.to_owned(), option.replace('-', "_")] {
                let words = [Some(format!("--{option}")), value.map(str::to_owned)];
                let words: Vec<_> = words.iter().flatten().map(String::as_str).collect();
                let ran = run(&mut place.phalanx(&[&words[..], &["--dry-run", "./train.py"]].concat()));
                assert_eq!(ran.code, 0, "{option}: {ran:?}");
            }
            let variable = format!("PET_{}", option.replace('-', "_").to_uppercase());
            let by_variable =
                run(place.phalanx(&["--dry-run", "./train.py"]).env(variable, value.unwrap_or("1")));
            assert_eq!(by_variable.code, 0, "{option}: {by_variable:?}");
        }
    });
}

#[test]
fn what_contradicts_itself_or_means_nothing_is_refused_with_a_hint() {
    watched(|| {
        let place = Place::new();
        let cases: [(&[&str], &str); 17] = [
            (&["--nnodes", "1:2"], "one node only"),
            (&["--nnodes", "2:1"], "write N or MIN:MAX"),
            (&["--nproc-per-node", "0"], "1 or more"),
            (&["--nproc-per-node", "gpu"], "give their number, or auto"),
            (&["--nproc-per-node", "xpu"], "give their number, or auto"),
            (&["--max-restarts", "-1"], "--max-restarts"),
            (&["--restart-on", "0"], "write a list such as"),
            (&["--local-ranks-filter", "3-1"], "write a list such as 0-3,12"),
            (&["--tee", "0:4"], "names no streams of ranks"),
            (&["--log-line-prefix-template", "${node}"], "there are ${role_name}"),
            (&["--numa-binding", "numa"], "there are node, socket, exclusive and core-complex"),
            (&["--virtual-local-rank", "--nproc-per-node", "1"], "make more GPUs visible"),
            (&["--stdin", "5"], "ranks begin at 0"),
            (&["--role", ""], "give a name"),
            (&["--signals-to-handle", "SIGKILL"], "SIGKILL cannot be handled"),
            (&["--module", "--run-path"], "cannot be used with"),
            (&["--nproc-per-nod", "2"], "--nproc-per-node"),
        ];
        for (options, hint) in cases {
            let mut command = place.phalanx(&[options, &["touch", "made"]].concat());
            let ran = place.end(command.env("CUDA_VISIBLE_DEVICES", ""));
            assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{options:?}: {ran:?}");
            assert!(ran.err.contains(hint), "{options:?}: {}", ran.err);
        }
        for (variable, value) in [
            ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "-1"),
            ("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGX"),
            ("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", "${x}"),
            ("PET_NPROC_PER_NODE", "many"),
        ] {
            let ran = place.end(place.phalanx(&["touch", "made"]).env(variable, value));
            assert_eq!(ran.code, 2, "{variable}: {ran:?}");
        }
        assert!(!place.path("made").exists());
    });
}

#[test]
fn workers_are_as_many_as_visible_gpus_else_as_usable_processors() {
    watched(|| {
        let count = |nproc: &str, gpus: &str| {
            let place = Place::new();
            let mut command = place.phalanx(&["--nproc-per-node", nproc, "sh", "-c", "echo $WORLD_SIZE"]);
            let ran = place.end(command.env("CUDA_VISIBLE_DEVICES", gpus));
            assert_eq!(ran.code, 0, "{ran:?}");
            ran.lines().len()
        };
        let own = sched_getaffinity(Pid::this()).unwrap();
        let usable = (0..CpuSet::count()).filter(|&cpu| own.is_set(cpu).unwrap()).collect::<Vec<_>>();
        assert_eq!([count("gpu", "3,5"), count("auto", "3,5,7")], [2, 3]);
        // One processor: this thread's, and so the launcher's.
        let mut one = CpuSet::new();
        one.set(usable[0]).unwrap();
        sched_setaffinity(Pid::from_raw(0), &one).unwrap();
        let counts = [count("cpu", "3,5"), count("auto", "")];
        sched_setaffinity(Pid::from_raw(0), &own).unwrap();
        assert_eq!(counts, [1, 1]);
    });
}

#[test]
fn each_worker_sees_its_own_gpu_by_a_virtual_local_rank() {
    watched(|| {
        let place = Place::new();
        let script = "echo $RANK $LOCAL_RANK $1 $CUDA_VISIBLE_DEVICES";
        let options = ["--nproc-per-node", "2", "--virtual-local-rank"];
        let words = ["sh", "-c", script, "sh", "cuda:${local_rank}"];
        let mut command = place.phalanx(&[&options[..], &words].concat());
        let ran = place.end(command.env("CUDA_VISIBLE_DEVICES", "4,GPU-7"));
        assert_eq!(ran.lines(), ["[default0]:0 0 cuda:0 4", "[default1]:1 0 cuda:0 GPU-7"], "{ran:?}");
        // torchrun's variable for AMD's.
        let mut command = place.phalanx(&["--virtual-local-rank", "sh", "-c", "echo $HIP_VISIBLE_DEVICES"]);
        assert_eq!(place.end(command.env("HIP_VISIBLE_DEVICES", "6,7")).out, "[default0]:6\n");
    });
}

#[test]
fn rank_zero_is_looked_for_where_the_options_say() {
    watched(|| {
        let given = ["--master-addr", "localhost", "--master-port", "12345", "--node-rank", "0"];
        let ran = workers(2, &given, "echo $MASTER_ADDR:$MASTER_PORT");
        assert_eq!(ran.lines(), ["[default0]:localhost:12345", "[default1]:localhost:12345"]);
        // Otherwise all have one free port, on which rank 0 can listen.
        let ran = workers(3, &[], "echo $MASTER_ADDR:$MASTER_PORT");
        let ends: std::collections::BTreeSet<_> =
            ran.out.lines().map(|line| line.split_once("]:").unwrap().1).collect();
        assert_eq!(ends.len(), 1, "{ran:?}");
        assert!(ends.first().unwrap().starts_with("127.0.0.1:"));
    });
}

#[test]
fn other_signals_can_stop_the_job() {
    watched(|| {
        let script = "trap 'echo saved; exit 0' USR1; echo up; while :; do sleep 0.02; done";
        let place = Place::new();
        let by_option = place.shell(2, &["--signals-to-handle", "SIGUSR1,SIGTERM"], script);
        let mut by_variable = place.shell(2, &[], script);
        by_variable.env("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGUSR1");
        for mut command in [by_option, by_variable] {
            let mut running = Running::start(&mut command);
            running.hear();
            running.hear();
            running.send(Signal::SIGUSR1);
            let ran = running.end();
            assert_eq!(ran.code, -(Signal::SIGUSR1 as i32), "{ran:?}");
            assert_eq!(ran.out.matches("saved").count(), 2, "{ran:?}");
        }
    });
}

#[test]
fn prefix_is_the_options_else_the_variables() {
    watched(|| {
        let place = Place::new();
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let hostname = hostname.trim().split('.').next().unwrap();
        let run = |options: &[&str]| {
            let mut command = place.phalanx(&[options, &["echo", "x"]].concat());
            let template = "${hostname} ${role_name} ${rank}.${local_rank}> ";
            place.end(command.env("TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE", template)).out
        };
        assert_eq!(run(&[]), format!("{hostname} default 0.0> x\n"));
        assert_eq!(run(&["--log-line-prefix-template", "", "--role", "r"]), "x\n");
    });
}

#[test]
fn script_is_run_by_python_whatever_its_name_where_that_is_said() {
    watched(|| {
        let place = Place::new();
        place.script("plain", "echo ran by $0");
        let mut command = place.phalanx(&["--run-path", "plain"]);
        // A shell in the place of Python: it takes -u too.
        let ran = place.end(command.env("PYTHON_EXEC", "/bin/sh"));
        assert_eq!((ran.code, ran.out.as_str()), (0, "[default0]:ran by plain\n"), "{ran:?}");
        // A name that is no program's.
        let missing = place.end(place.phalanx(&["-m", "x"]).env("PYTHON_EXEC", "no-such-python"));
        assert!(missing.code == 127 && missing.err.contains("set PYTHON_EXEC"), "{missing:?}");
    });
}

/// The processors of each worker, in the order of ranks.
fn processors(nproc: usize, options: &[&str]) -> Vec<Vec<usize>> {
    let ran = workers(nproc, options, "sed -n 's/^Cpus_allowed_list:\\t/:/p' /proc/self/status");
    assert_eq!(ran.code, 0, "{ran:?}");
    let list = |line: &&str| line.rsplit(':').next().unwrap().parse::<RankList>().unwrap().iter().collect();
    ran.lines().iter().map(list).collect()
}

#[test]
fn workers_are_bound_to_processors_that_the_launcher_has() {
    watched(|| {
        let own = &processors(1, &[])[0];
        for binding in ["node", "socket", "exclusive", "core-complex"] {
            let bound = &processors(1, &["--numa-binding", binding])[0];
            assert!(!bound.is_empty() && bound.iter().all(|cpu| own.contains(cpu)), "{binding}: {bound:?}");
        }
        if own.len() == 2 {
            // Two cores, or two threads of one.
            let options = ["--numa-binding", "exclusive"];
            if workers(2, &options, "exit 0").code == 0 {
                assert_eq!(processors(2, &options), [[own[0]], [own[1]]]);
            }
        }
        let many = workers(5000, &["--numa-binding", "exclusive"], "exit 0");
        assert!(many.code == 2 && many.err.contains("would have no processor"), "{many:?}");
    });
}

#[test]
fn environment_is_the_launchers_but_for_what_an_outer_launcher_has_said() {
    watched(|| {
        let place = Place::new();
        let show = "echo $OMP_NUM_THREADS,$TORCH_NCCL_ASYNC_ERROR_HANDLING,$MINE,$RANK/$WORLD_SIZE,$TORCHELASTIC_USE_AGENT_STORE,\
                    $TORCHELASTIC_TIMER_FILE,$TORCHELASTIC_RESTART_COUNT";
        let mut command = place.shell(1, &[], show);
        let stale = [
            ("RANK", "9"),
            ("WORLD_SIZE", "99"),
            ("TORCHELASTIC_RESTART_COUNT", "7"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_TIMER_FILE", "/nowhere"),
        ];
        let ran =
            place.end(command.envs(stale).env("MINE", "kept").env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0"));
        // One worker may use all cores.
        assert_eq!(ran.out, "[default0]:,0,kept,0/1,,,0\n", "{ran:?}");
        assert!(!ran.err.contains("OMP_NUM_THREADS"), "{ran:?}");
        let chosen = place.end(place.shell(2, &[], "echo $OMP_NUM_THREADS").env("OMP_NUM_THREADS", "3"));
        assert_eq!(chosen.lines(), ["[default0]:3", "[default1]:3"]);
        assert!(!chosen.err.contains("OMP_NUM_THREADS"), "{chosen:?}");
        // A launcher in a worker of a launcher.
        let inner = format!(
            "exec {} run -q --nproc-per-node 2 sh -c 'echo $RANK of $WORLD_SIZE'",
            env!("CARGO_BIN_EXE_phalanx")
        );
        let nested = place.end(&mut place.shell(3, &["--log-line-prefix-template", ""], &inner));
        assert_eq!(
            nested.lines().join(","),
            ["[default0]:0 of 2"; 3]
                .iter()
                .chain(&["[default1]:1 of 2"; 3])
                .copied()
                .collect::<Vec<_>>()
                .join(",")
        );
    });
}

#[test]
fn arguments_and_variables_reach_the_program_byte_for_byte() {
    watched(|| {
        let place = Place::new();
        let words = [&b"--nnodes"[..], b"", b"a b", b"'\"$HOME\\", b"\xff\n", b"${rank}${other}", b"--"];
        let mut command = place.phalanx(&["sh", "-c", "printf '%s|' \"$@\" \"$BYTES\" > words", "sh"]);
        command.args(words.map(OsStr::from_bytes)).env("BYTES", OsStr::from_bytes(b"\xfe="));
        assert_eq!(place.end(&mut command).code, 0);
        let expected = b"--nnodes||a b|'\"$HOME\\|\xff\n|0${other}|--|\xfe=|";
        assert_eq!(fs::read(place.path("words")).unwrap(), expected);
    });
}

#[test]
fn program_under_the_name_torchrun_is_torchrun() {
    watched(|| {
        let place = Place::new();
        let torchrun = place.path("torchrun");
        symlink(env!("CARGO_BIN_EXE_phalanx"), &torchrun).unwrap();
        let run = |words: &[&str]| Ran::of(Command::new(&torchrun).args(words).output().unwrap());
        let ran = run(&["--standalone", "--nproc_per_node=2", "--no_python", "echo", "x"]);
        assert_eq!((ran.code, ran.lines()), (0, vec!["[default0]:x", "[default1]:x"]), "{ran:?}");
        let completions = run(&["--print-completion", "bash"]);
        assert!(completions.code == 0 && completions.out.contains(" torchrun\n"), "{completions:?}");
        assert!(completions.out.contains("--nproc-per-node"), "{completions:?}");
    });
}

#[test]
fn each_group_of_the_help_fits_a_screen() {
    watched(|| {
        let place = Place::new();
        let help = place.run(&["--help"]).out;
        let groups: Vec<_> = help.split("\n\n").filter(|group| group.contains("  --")).collect();
        assert!(groups.len() >= 6 && groups.iter().all(|group| group.lines().count() <= 24), "{help}");
        for (option, _) in TORCHRUN {
            assert!(help.contains(&format!("--{option}")), "{option}");
        }
        assert_eq!(place.run(&["--dry-run"]).code, 2);
    });
}
