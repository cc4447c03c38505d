//! The pump with pipes, and files in the place of the console.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::source::{Source, show_parts};
use super::{Console, Filter, Packet, Pump, Route, SourceId, Stream};
use crate::sys::clock::Moment;
use crate::sys::epoll::wait_readable;
use crate::sys::pipe::{Read, pipe, read_now, write_all};
use crate::sys::socket::Socket;

/// A pump whose stdout and stderr are files of a directory.
struct Bench {
    dir: tempfile::TempDir,
    pump: Pump,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pump-test").tempdir().unwrap();
        let file = |name| OwnedFd::from(File::create(dir.path().join(name)).unwrap());
        let pump = Pump::start(Console::new(file("stdout"), file("stderr"))).unwrap();
        Self { dir, pump }
    }

    fn add(&self, stream: Stream, prefix: &str) -> (usize, OwnedFd) {
        let (reader, writer) = pipe().unwrap();
        let console = Some((stream, prefix.into()));
        let route = Route { console, channel: Some(stream as u64), ..Route::default() };
        (self.pump.add(reader, route), writer)
    }

    fn await_closed(&self, id: usize) {
        while !self.pump.is_closed(id) {
            wait_readable(self.pump.as_fd(), None).unwrap();
            self.pump.clear();
        }
    }

    /// Waits until what was told is written.
    fn text(self, name: &str) -> String {
        let Self { dir, pump } = self;
        drop(pump);
        fs::read_to_string(dir.path().join(name)).unwrap()
    }
}

#[test]
fn lines_of_many_sources_are_whole_and_none_is_lost() {
    let bench = Bench::new();
    let lines = 2_000;
    let writers: Vec<_> = (0..8)
        .map(|rank| {
            let (id, pipe) = bench.add(Stream::Stdout, &format!("[{rank}]:"));
            let write = move || {
                for line in 0..lines {
                    // In two halves: no other line comes between them.
                    write_all(pipe.as_fd(), format!("rank {rank} ").as_bytes()).unwrap();
                    write_all(pipe.as_fd(), format!("line {line}\n").as_bytes()).unwrap();
                }
            };
            (id, std::thread::spawn(write))
        })
        .collect();
    for (id, writer) in writers {
        writer.join().unwrap();
        bench.await_closed(id);
    }
    let text = bench.text("stdout");
    for rank in 0..8 {
        let own: Vec<_> = text.lines().filter(|line| line.starts_with(&format!("[{rank}]:"))).collect();
        let expected: Vec<_> = (0..lines).map(|line| format!("[{rank}]:rank {rank} line {line}")).collect();
        assert_eq!(own, expected);
    }
    assert_eq!(text.lines().count(), 8 * lines);
}

#[test]
fn source_that_somebody_keeps_open_is_finished_and_its_last_line_told() {
    let bench = Bench::new();
    let (id, pipe) = bench.add(Stream::Stderr, "> ");
    write_all(pipe.as_fd(), b"one\nlast").unwrap();
    bench.pump.finish(id);
    bench.await_closed(id);
    assert_eq!(bench.pump.tail(id), b"one\nlast");
    // Nobody reads it any more, and the writer learns of it.
    assert!(write_all(pipe.as_fd(), b"late").is_err());
    assert_eq!(bench.text("stderr"), "> one\n> last\n");
}

#[test]
fn source_to_which_somebody_writes_for_ever_is_finished_too() {
    let bench = Bench::new();
    let (id, pipe) = bench.add(Stream::Stdout, "");
    let writer = std::thread::spawn(move || while write_all(pipe.as_fd(), &[b'\n'; 60_000]).is_ok() {});
    while bench.pump.tail(id).is_empty() {
        std::thread::yield_now();
    }
    bench.pump.finish(id);
    bench.await_closed(id);
    writer.join().unwrap();
}

#[test]
fn file_has_every_byte_and_the_filter_the_lines_that_it_takes() {
    let bench = Bench::new();
    let path = |name: &str| bench.dir.path().join(name);
    let filter = Filter {
        needles: vec![b"loss".to_vec(), b"error".to_vec()],
        file: Arc::new(File::create(path("filtered")).unwrap()),
        path: path("filtered"),
    };
    let (reader, pipe) = pipe().unwrap();
    let file = Some((File::create(path("file")).unwrap(), path("file")));
    let id = bench.pump.add(reader, Route { file, filter: Some(Arc::new(filter)), ..Route::default() });
    let bytes = b"\r 1%\r 2%\nloss 3\nnothing\xff\nan error";
    write_all(pipe.as_fd(), bytes).unwrap();
    drop(pipe);
    bench.await_closed(id);
    assert_eq!(fs::read(path("file")).unwrap(), bytes);
    assert_eq!(fs::read_to_string(path("filtered")).unwrap(), "loss 3\nan error\n");
}

#[test]
fn output_that_breaks_is_told_once_and_holds_nobody_up() {
    let full = || OwnedFd::from(File::options().write(true).open("/dev/full").unwrap());
    let pump = Pump::start(Console::new(full(), full())).unwrap();
    let (reader, writer) = pipe().unwrap();
    let file = File::options().write(true).open("/dev/full").unwrap();
    let console = Some((Stream::Stdout, Vec::new()));
    let id = pump.add(reader, Route { file: Some((file, "/dev/full".into())), console, ..Route::default() });
    for _ in 0..100 {
        write_all(writer.as_fd(), &[b'\n'; 10_000]).unwrap();
    }
    drop(writer);
    while !pump.is_closed(id) {
        wait_readable(pump.as_fd(), None).unwrap();
        pump.clear();
    }
    let mut broken = pump.take_broken();
    broken.sort();
    assert_eq!(broken.len(), 2, "{broken:?}");
    assert!(broken[0].starts_with("/dev/full: No space left on device"), "{broken:?}");
    assert!(broken[1].starts_with("stdout takes no more output (No space left"), "{broken:?}");
}

#[test]
fn part_of_a_line_is_shown_while_nobody_ends_it() {
    let (reader, console) = pipe().unwrap();
    let null = crate::sys::fd::null().unwrap();
    let pump = Pump::start(Console::new(console, null)).unwrap();
    let (source, writer) = pipe().unwrap();
    let route = Route { console: Some((Stream::Stdout, b"[0]:".to_vec())), ..Route::default() };
    pump.add(source, route);
    write_all(writer.as_fd(), b"Name? ").unwrap();
    let mut shown = [0; 32];
    wait_readable(reader.as_fd(), None).unwrap();
    assert_eq!(read_now(reader.as_fd(), &mut shown).unwrap(), Read::Bytes(10));
    assert_eq!(&shown[..10], b"[0]:Name? ");
    // A line of another comes between; what follows of the first one has its prefix again.
    pump.say("phalanx: note");
    write_all(writer.as_fd(), b"bob\n").unwrap();
    drop(writer);
    drop(pump);
    let mut rest = String::new();
    let mut file = File::from(reader);
    // The reader does not wait, and all is there: the pump has ended.
    std::io::Read::read_to_string(&mut file, &mut rest).unwrap();
    // The command may be carried out before the bytes are read, or after.
    assert!(["\n[0]:bob\n", "bob\n"].contains(&rest.as_str()), "{rest:?}");
}

/// Sources and a console, at moments that are made up.
struct Timed {
    console: Console,
    sources: BTreeMap<SourceId, Source>,
    file: File,
}

impl Timed {
    /// So many sources, all of stdout.
    fn new(count: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        let console = Console::new(file.try_clone().unwrap().into(), crate::sys::fd::null().unwrap());
        let source = |id| {
            let route =
                Route { console: Some((Stream::Stdout, format!("[{id}]:").into())), ..Route::default() };
            (id, Source::new(id, crate::sys::fd::null().unwrap(), route))
        };
        Self { console, sources: (0..count).map(source).collect(), file }
    }

    fn write(&mut self, millis: u64, source: SourceId, text: &str) {
        let source = self.sources.get_mut(&source).unwrap();
        source.carry(text.as_bytes(), &mut self.console, at(millis));
    }

    /// What is on the console at a moment, since the last look.
    fn look(&mut self, millis: u64) -> String {
        show_parts(&mut self.sources, &mut self.console, at(millis));
        assert_eq!(self.console.flush(at(millis)), Vec::<String>::new());
        self.file.rewind().unwrap();
        let text = std::io::read_to_string(&self.file).unwrap();
        self.file.set_len(0).unwrap();
        self.file.rewind().unwrap();
        self.file.flush().unwrap();
        text
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

#[test]
fn parts_of_several_sources_take_turns_and_do_not_end_one_another_at_once() {
    let mut timed = Timed::new(3);
    for source in [2, 0, 1] {
        timed.write(source as u64, source, "..");
    }
    assert_eq!(timed.look(99), "");
    assert_eq!(timed.look(110), "[0]:..");
    // Its line stays, and grows, for its turn.
    timed.write(500, 0, "..");
    assert_eq!(timed.look(900), "..");
    timed.write(1_000, 0, "!");
    assert_eq!(timed.look(1_110), "\n[1]:..");
    assert_eq!(timed.look(2_109), "");
    // The one that has waited longest is next.
    assert_eq!(timed.look(2_110), "\n[2]:..");
    timed.write(2_200, 2, "end\n");
    timed.write(2_200, 1, "end\n");
    assert_eq!(timed.look(2_250), "end\n[1]:end\n");
    assert_eq!(timed.look(2_300), "[0]:!");
}

#[test]
fn part_of_a_line_waits_for_its_end_while_others_write() {
    let mut timed = Timed::new(2);
    timed.write(0, 0, "load");
    for millis in (0..1_000).step_by(50) {
        timed.write(millis, 1, "step\n");
        assert_eq!(timed.look(millis), "[1]:step\n");
    }
    timed.write(1_000, 0, "ed\n");
    assert_eq!(timed.look(1_000), "[0]:loaded\n");
    timed.write(2_000, 0, "name? ");
    assert_eq!(timed.look(2_100), "[0]:name? ");
    // What was shown, and ended by another's line, needs no line of its own for its newline.
    timed.write(2_200, 1, "step\n");
    timed.write(2_200, 0, "\n");
    assert_eq!(timed.look(2_300), "\n[1]:step\n");
}

#[test]
fn tail_of_a_source_has_only_its_own_bytes_though_its_channel_had_others_before() {
    let bench = Bench::new();
    for word in ["first", "second"] {
        let (id, pipe) = bench.add(Stream::Stdout, "");
        write_all(pipe.as_fd(), word.as_bytes()).unwrap();
        drop(pipe);
        bench.await_closed(id);
        assert_eq!(bench.pump.tail(id), word.as_bytes());
    }
}

/// What a follower has been sent: the number of skipped bytes, and the bytes. It ends with the pump's end of the socket.
fn followed(socket: &Socket) -> (u64, Vec<u8>) {
    let (mut skipped, mut bytes) = (0, Vec::new());
    loop {
        wait_readable(socket.as_fd(), None).unwrap();
        match socket.try_receive_up_to(Packet::LONGEST) {
            Ok(Some(message)) => {
                let packet = Packet::decode(&message.bytes).unwrap();
                assert_eq!(packet.channel, Stream::Stdout as u64);
                skipped += packet.skipped;
                bytes.extend_from_slice(packet.bytes);
            }
            Ok(None) => {}
            Err(_) => return (skipped, bytes),
        }
    }
}

#[test]
fn follower_has_all_from_its_position_on() {
    let bench = Bench::new();
    let (id, pipe) = bench.add(Stream::Stdout, "");
    let (_, other) = bench.add(Stream::Stderr, "");
    write_all(pipe.as_fd(), b"before").unwrap();
    while bench.pump.channel(Stream::Stdout as u64).1 < 6 {
        std::thread::yield_now();
    }
    let (here, there) = Socket::pair().unwrap();
    bench.pump.follow(there, vec![(Stream::Stdout as u64, 3)]);
    let reader = std::thread::spawn(move || followed(&here));
    let text: Vec<u8> = (0..100_000).flat_map(|line| format!("{line}\n").into_bytes()).collect();
    // Slowly enough for one who reads: what is not kept any more is nobody's.
    for piece in text.chunks(16 * 1024) {
        write_all(pipe.as_fd(), piece).unwrap();
        write_all(other.as_fd(), b"not followed").unwrap();
    }
    drop(pipe);
    bench.await_closed(id);
    drop(bench);
    let (skipped, bytes) = reader.join().unwrap();
    assert_eq!(skipped as usize + bytes.len(), 3 + text.len());
    assert!(skipped > 0 || bytes == [b"ore", &text[..]].concat());
    assert!(bytes.ends_with(b"99998\n99999\n"));
}

#[test]
fn follower_that_takes_nothing_holds_nobody_up_and_learns_what_it_has_missed() {
    let bench = Bench::new();
    let (id, pipe) = bench.add(Stream::Stdout, "");
    let (here, there) = Socket::pair().unwrap();
    let (gone, gone_too) = Socket::pair().unwrap();
    drop(gone);
    bench.pump.follow(there, vec![(0, 0)]);
    bench.pump.follow(gone_too, vec![(0, 0)]);
    let total = 4_000_000;
    write_all(pipe.as_fd(), b"first").unwrap();
    // The pump reads what has come before it obeys: more than it keeps would be skipped before it has this follower.
    wait_readable(here.as_fd(), None).unwrap();
    for _ in 0..total / 10_000 {
        write_all(pipe.as_fd(), &[b'x'; 10_000]).unwrap();
    }
    drop(pipe);
    bench.await_closed(id);
    // The pump's end waits for it for a while.
    let started = Moment::now();
    drop(bench);
    assert!(Moment::now().since(started) >= std::time::Duration::from_millis(250));
    let (skipped, bytes) = followed(&here);
    assert!(skipped == 0 && bytes.len() < total, "what it was sent before it was full: {}", bytes.len());
}
