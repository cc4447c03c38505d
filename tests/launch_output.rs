//! `phalanx run`: what workers print, on consoles, in pipes and in files; progress bars of real tools.
//!
//! `tests/captured` has what real tools have written: `tqdm.bytes` is stderr of
//! `for _ in tqdm.tqdm(range(8), desc="epoch 1"): time.sleep(0.12)`; `tqdm_nested.bytes` that of a bar `epochs` over 2 with a bar
//! `steps` over 4 (`leave=False`) in it (tqdm 4.70.1, Python 3.11); `pip.bytes` is what `pip download --no-deps -d d numpy==2.0.2` has
//! written to a terminal of 80 columns (pip 23.2.1).

use std::fs::{self, File};
use std::io::Write;

mod common;
mod launcher;

use common::watched;
use launcher::{Place, Running, Terminal, tree, workers};

const TQDM: &[u8] = include_bytes!("captured/tqdm.bytes");
const NESTED: &[u8] = include_bytes!("captured/tqdm_nested.bytes");
const PIP: &[u8] = include_bytes!("captured/pip.bytes");

/// Two workers that print what the test writes into a FIFO of each, and end when it is closed.
struct Typed {
    place: Place,
    command: std::process::Command,
}

impl Typed {
    fn new() -> Self {
        let place = Place::new();
        let command = place.shell(2, &["--quiet"], "cat fifo$RANK");
        for rank in 0..2 {
            nix::unistd::mkfifo(&place.path(&format!("fifo{rank}")), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        Self { place, command }
    }

    /// The FIFO of a rank; the worker has opened it then.
    fn of(&self, rank: usize) -> File {
        File::options().write(true).open(self.place.path(&format!("fifo{rank}"))).unwrap()
    }
}

/// The lines that reach a pipe when a worker writes all of this at once.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    let mut typed = Typed::new();
    let running = Running::start(&mut typed.command);
    let (mut first, second) = (typed.of(0), typed.of(1));
    first.write_all(bytes).unwrap();
    drop((first, second));
    let ran = running.end();
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.lines().map(|line| line.strip_prefix("[default0]:").unwrap().to_owned()).collect()
}

/// The states of a bar, each with the carriage return before it.
fn states(bytes: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    text.split_inclusive('\r').map(|state| format!("\r{}", state.trim_end_matches('\r'))).skip(1).collect()
}

#[test]
fn bar_of_tqdm_is_a_line_a_second_in_a_pipe() {
    watched(|| {
        let states = states(TQDM);
        assert_eq!(lines_of(TQDM), [states.last().unwrap().trim()]);
        let mut typed = Typed::new();
        let mut running = Running::start(&mut typed.command);
        let (mut first, mut second) = (typed.of(0), typed.of(1));
        for (nth, state) in [2, 5].into_iter().enumerate() {
            first.write_all(states[3 * nth..=state].concat().as_bytes()).unwrap();
            // Of a burst the newest one is shown.
            assert_eq!(running.hear(), format!("[default0]:{}", states[state].trim()));
            second.write_all(b"loss 0.5\n").unwrap();
            assert_eq!(running.hear(), "[default1]:loss 0.5");
        }
        first.write_all(states[6..].concat().as_bytes()).unwrap();
        drop((first, second));
        let ran = running.end();
        assert_eq!(ran.out, format!("[default0]:{}\n", states.last().unwrap().trim()));
    });
}

#[test]
fn bar_of_tqdm_stays_in_its_line_on_a_terminal() {
    watched(|| {
        let states = states(TQDM);
        let mut typed = Typed::new();
        let (mut terminal, mut launcher) = Terminal::start(&mut typed.command);
        let (mut first, mut second) = (typed.of(0), typed.of(1));
        let mut write = |state: usize| first.write_all(states[state].as_bytes()).unwrap();
        let shown = |state: usize| format!("[default0]:{}", states[state].trim());
        write(0);
        assert_eq!(terminal.expect(&shown(0)), "");
        write(1);
        assert_eq!(terminal.expect(&shown(1)), "\r\x1b[K", "in the place of the one before");
        second.write_all(b"loss 0.5\n").unwrap();
        assert_eq!(terminal.expect("[default1]:loss 0.5\r\n"), "\r\n", "the bar is not written over");
        write(2);
        assert_eq!(terminal.expect(&shown(2)), "");
        write(states.len() - 1);
        drop((first, second));
        assert_eq!(terminal.expect(&format!("{}\r\n", shown(states.len() - 1))), "\r\x1b[K");
        assert!(launcher.wait().unwrap().success());
    });
}

#[test]
fn bars_of_two_ranks_take_turns_on_a_terminal() {
    watched(|| {
        let states = states(TQDM);
        let mut typed = Typed::new();
        let (mut terminal, mut launcher) = Terminal::start(&mut typed.command);
        let mut ranks = [typed.of(0), typed.of(1)];
        let mut write = |rank: usize, state: usize| ranks[rank].write_all(states[state].as_bytes()).unwrap();
        let shown = |rank: usize, state: usize| format!("[default{rank}]:{}", states[state].trim());
        write(0, 0);
        terminal.expect(&shown(0, 0));
        write(1, 3);
        // Each on a line of its own, behind its prefix.
        assert_eq!(terminal.expect(&shown(1, 3)), "\r\n");
        write(0, 1);
        assert_eq!(terminal.expect(&shown(0, 1)), "\r\n");
        drop(ranks);
        assert!(launcher.wait().unwrap().success());
    });
}

#[test]
fn bar_below_a_bar_goes_up_into_nobodys_line() {
    watched(|| {
        let lines = lines_of(NESTED);
        let begins: Vec<_> = lines.iter().map(|line| line.split('|').next().unwrap()).collect();
        assert_eq!(begins, ["epochs:   0%", "epochs:  50%", "epochs: 100%"], "{lines:?}");
        assert!(lines.iter().all(|line| !line.contains('\x1b')), "{lines:?}");
    });
}

#[test]
fn bar_of_pip_leaves_the_prefix_and_the_cursor_alone() {
    watched(|| {
        let lines = lines_of(PIP);
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert_eq!((&*lines[0], &*lines[4]), ("Collecting numpy==2.0.2", "Successfully downloaded numpy"));
        assert!(lines[2].contains("19.5/19.5 MB") && lines[3].starts_with("Saved ./d/numpy"), "{lines:?}");
        // Of its control sequences the colours are left.
        let sequences = lines.iter().flat_map(|line| line.split('\x1b').skip(1));
        assert!(lines[2].contains("\x1b[") && sequences.clone().count() > 5, "{lines:?}");
        let is_colour = |sequence: &str| sequence.chars().find(char::is_ascii_alphabetic) == Some('m');
        assert!(sequences.into_iter().all(is_colour), "{lines:?}");
        // So it is in the report of a failure.
        let script = concat!("cat ", env!("CARGO_MANIFEST_DIR"), "/tests/captured/pip.bytes >&2; exit 3");
        let ran = workers(1, &["--quiet"], script);
        assert!(ran.code == 3 && ran.err.contains("    Successfully downloaded numpy\n"), "{ran:?}");
        assert!(ran.err.contains("19.5/19.5 MB") && ran.err.split('\x1b').skip(1).all(is_colour), "{ran:?}");
    });
}

#[test]
fn lines_are_whole_and_a_part_of_one_is_prefixed_once() {
    watched(|| {
        let script = "for i in 1 2 3; do printf \"a$RANK\"; printf \"b$i\\n\"; done; printf end$RANK";
        let ran = workers(4, &["--log-line-prefix-template", "${role_name}/${rank}: "], script);
        let lines = (0..4).flat_map(|rank| {
            let line = move |text: String| format!("default/{rank}: {text}");
            (1..4).map(move |i| line(format!("a{rank}b{i}"))).chain([line(format!("end{rank}"))])
        });
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        assert_eq!(ran.lines(), lines);
    });
}

#[test]
fn logs_lie_where_torchrun_puts_them_byte_for_byte() {
    watched(|| {
        let place = Place::new();
        let options =
            ["--nproc-per-node", "12", "--log-dir", "logs", "--rdzv-id", "job", "-r", "10:1", "-t", "11:3"];
        let script = "printf 'out\\r1\\xff%s' $RANK; echo err$RANK >&2";
        let ran = place.run(&[&options[..], &["sh", "-c", script]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        let logs = place.path("logs");
        let run = fs::read_dir(&logs).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
        assert!(run.starts_with("job_"), "{run}");
        let names = [
            format!("{run}/attempt_0/10/stdout.log"),
            format!("{run}/attempt_0/11/stderr.log"),
            format!("{run}/attempt_0/11/stdout.log"),
        ];
        assert_eq!(tree(&logs), names);
        assert_eq!(fs::read(logs.join(&names[0])).unwrap(), b"out\r1\\xff10");
        assert_eq!(fs::read(logs.join(&names[1])).unwrap(), b"err11\n");
        // Redirected: not on the console. Teed: on both.
        assert!(!ran.out.contains("default10") && ran.out.contains("[default11]:"), "{}", ran.out);
        assert!(ran.err.contains("their logs go to"), "{}", ran.err);
    });
}

#[test]
fn filters_choose_ranks_and_lines() {
    watched(|| {
        let place = Place::new();
        let options = ["--nproc-per-node", "3", "--local-ranks-filter", "0,2", "--log-dir", "logs"];
        let texts = ["--duplicate-stdout-filters", "loss,a,,b"];
        let script = "echo loss $RANK; echo other $RANK; echo 'a,b'; echo hidden >&2";
        let ran = place.run(&[&options[..], &texts, &["sh", "-c", script]].concat());
        assert!(ran.out.contains("[default2]:other 2") && !ran.out.contains("default1"), "{}", ran.out);
        let filtered = tree(&place.path("logs"))
            .into_iter()
            .find(|path| path.ends_with("attempt_0/filtered_stdout.log"));
        let text = fs::read_to_string(place.path("logs").join(filtered.unwrap())).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["a,b", "a,b", "a,b", "loss 0", "loss 1", "loss 2"]);
    });
}

#[test]
fn colours_and_bytes_that_are_no_text_pass() {
    watched(|| {
        let place = Place::new();
        let mut command = place.phalanx(&["printf", r"\033[31mred\033[0m\tx \377\n"]);
        assert_eq!(command.output().unwrap().stdout, b"[default0]:\x1b[31mred\x1b[0m\tx \xff\n");
    });
}

#[test]
fn redirection_covers_what_a_worker_starts_and_each_stream_of_each_rank() {
    watched(|| {
        let place = Place::new();
        let options = ["--log-dir", "logs", "-r", "0:1,1:3", "-t", "0:2"];
        let ran =
            place.end(&mut place.shell(3, &options, "sh -c 'echo out $RANK; sh -c \"echo err $RANK >&2\"'"));
        assert_eq!(ran.code, 0, "{ran:?}");
        let logs = place.path("logs");
        let files: Vec<_> = tree(&logs)
            .into_iter()
            .map(|path| {
                let text = fs::read_to_string(logs.join(&path)).unwrap();
                (path.split_once("attempt_0/").unwrap().1.to_owned(), text)
            })
            .collect();
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(
            files,
            [
                file("0/stderr.log", "err 0\n"),
                file("0/stdout.log", "out 0\n"),
                file("1/stderr.log", "err 1\n"),
                file("1/stdout.log", "out 1\n"),
            ]
        );
        // Rank 0's stderr goes both ways, and nothing was said of rank 2.
        assert_eq!(ran.lines(), ["[default2]:out 2"]);
        let err: Vec<_> = ran.err.lines().filter(|line| line.starts_with("[default")).collect();
        assert!(
            err.len() == 2 && err.contains(&"[default0]:err 0") && err.contains(&"[default2]:err 2"),
            "{ran:?}"
        );
    });
}

#[test]
fn lines_of_stderr_are_filtered_too_and_each_attempt_has_files_of_its_own() {
    watched(|| {
        let place = Place::new();
        let options =
            ["--log-dir", "logs", "--duplicate-stderr-filters", "loss", "-r", "1", "--max-restarts", "1"];
        let script = "echo loss $TORCHELASTIC_RESTART_COUNT >&2; echo loss; echo other >&2; [ $TORCHELASTIC_RESTART_COUNT = 1 ]";
        let ran = place.end(&mut place.shell(1, &options, script));
        assert_eq!(ran.code, 0, "{ran:?}");
        let logs = place.path("logs");
        let read = |end: &str| {
            let path =
                tree(&logs).into_iter().find(|path| path.ends_with(end)).unwrap_or_else(|| panic!("{end}"));
            fs::read_to_string(logs.join(path)).unwrap()
        };
        for attempt in 0..2 {
            assert_eq!(read(&format!("attempt_{attempt}/filtered_stderr.log")), format!("loss {attempt}\n"));
            assert_eq!(read(&format!("attempt_{attempt}/0/stdout.log")), "loss\n");
        }
    });
}

#[test]
fn log_directory_is_made_refused_or_left_out() {
    watched(|| {
        let place = Place::new();
        place.script("file", "");
        let refused = place.run(&["--log-dir", "file", "-r", "3", "true"]);
        assert!(refused.code == 2 && refused.err.contains("is a file"), "{refused:?}");
        // torchrun's word for "no logs": all goes to the console.
        let script =
            "echo out; echo err >&2; echo '{\"message\": \"seen\"}' > $TORCHELASTIC_ERROR_FILE; exit 3";
        let none = place.end(&mut place.shell(1, &["--log-dir", "/dev/null", "-r", "1", "-t", "2"], script));
        assert_eq!((none.code, none.out.as_str()), (3, "[default0]:out\n"), "{none:?}");
        assert!(none.err.contains("[default0]:err\n") && none.err.contains("error: seen"), "{none:?}");
        assert_eq!(tree(place.dir.path()), ["file"]);
        // Without the option logs lie among the temporary files, and stay; where is told once.
        let place = Place::new();
        let mut command = place.shell(2, &["-r", "3"], "echo kept $RANK");
        let output = launcher::Ran::of(command.output().unwrap());
        let files = tree(&place.path("tmp"));
        assert_eq!(files.len(), 4, "{files:?}");
        assert_eq!(output.err.matches(&*place.path("tmp").to_string_lossy()).count(), 1, "{output:?}");
    });
}

#[test]
fn workers_have_their_streams_and_no_other_descriptor_of_the_launchers() {
    watched(|| {
        let place = Place::new();
        // The stop word of the job is meant for them.
        let script = "echo $(ls /proc/self/fd | grep -vx \"${PHALANX_STOP_FD-none}\")";
        // Whoever runs the tests may have left some open, and the last one is the directory that ls reads.
        let alone = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        let alone = String::from_utf8(alone.stdout).unwrap();
        for options in [&["--log-dir", "logs", "-t", "3"][..], &["--stdin", "1"], &[]] {
            let ran = place.end(&mut place.shell(3, options, script));
            let lines: Vec<_> = (0..3).map(|rank| format!("[default{rank}]:{}", alone.trim())).collect();
            assert_eq!(ran.lines(), lines, "{options:?}: {ran:?}");
        }
        let ran = workers(2, &[], "readlink /proc/self/fd/0");
        assert_eq!(ran.lines(), ["[default0]:/dev/null", "[default1]:/dev/null"]);
    });
}
