//! What a cable does to the connections that it carries.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

mod common;

use common::watched;
use phalanx::fault::{Cable, End};

/// A server, a cable to it, and a connection over that: the client's end and the server's.
struct Line {
    cable: Cable,
    server: TcpListener,
    client: TcpStream,
    accepted: TcpStream,
}

impl Line {
    fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let cable = Cable::to(server.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(cable.address()).unwrap();
        let accepted = server.accept().unwrap().0;
        Self { cable, server, client, accepted }
    }

    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.cable.address()).unwrap();
        (client, self.server.accept().unwrap().0)
    }
}

/// That nothing comes for a while.
fn is_silent(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let read = stream.read(&mut [0]);
    stream.set_read_timeout(None).unwrap();
    read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number % 251) as u8).collect()
}

fn is_reset(stream: &mut TcpStream) -> bool {
    rest(stream).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

#[test]
fn everything_passes_both_ways_and_each_direction_ends_for_itself() {
    watched(|| {
        let Line { cable: _cable, mut client, mut accepted, .. } = Line::new();
        let (there, back) = (bytes(3_000_000), bytes(2_000_000));
        let (sent, expected) = (back.clone(), there.clone());
        let server = thread::spawn(move || {
            // The client's direction is at its end, and the other one still carries.
            assert!(rest(&mut accepted).unwrap() == expected);
            accepted.write_all(&sent).unwrap();
        });
        client.write_all(&there).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert!(rest(&mut client).unwrap() == back);
        server.join().unwrap();
    });
}

#[test]
fn pulled_cable_is_silent_and_what_waited_comes_when_it_is_plugged() {
    watched(|| {
        let mut line = Line::new();
        line.cable.pull();
        line.client.write_all(b"there").unwrap();
        assert!(is_silent(&mut line.accepted));
        // Who connects waits, too.
        let mut late = TcpStream::connect(line.cable.address()).unwrap();
        late.write_all(b"late").unwrap();
        line.server.set_nonblocking(true).unwrap();
        assert_eq!(line.server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        line.server.set_nonblocking(false).unwrap();
        line.cable.plug();
        let mut received = [0; 5];
        line.accepted.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"there");
        line.server.accept().unwrap().0.read_exact(&mut received[..4]).unwrap();
        assert_eq!(&received[..4], b"late");
    });
}

#[test]
fn end_that_closes_is_not_noticed_over_a_pulled_cable() {
    watched(|| {
        let mut line = Line::new();
        line.cable.pull();
        drop(line.client);
        assert!(is_silent(&mut line.accepted));
        line.cable.plug();
        assert_eq!(rest(&mut line.accepted).unwrap(), b"");
    });
}

#[test]
fn message_that_is_cut_has_its_begin_and_an_end_of_file() {
    watched(|| {
        for (end, cut, size) in [
            (End::Server, 0, 9),
            (End::Server, 5, 9),
            (End::Server, 100_000, 5_000_000),
            (End::Client, 70_000, 90_000),
        ] {
            let line = Line::new();
            line.cable.cut_after(end, cut as u64);
            let (from, mut to) = match end {
                End::Server => (&line.client, line.accepted.try_clone().unwrap()),
                End::Client => (&line.accepted, line.client.try_clone().unwrap()),
            };
            let sent = bytes(size);
            thread::scope(|scope| {
                // What it still sends is taken and thrown away, so that it does not wait for ever.
                scope.spawn(|| drop({ from }.write_all(&sent)));
                assert!(rest(&mut to).unwrap() == sent[..cut], "{end:?} {cut}");
            });
            // The next connection is carried.
            let (mut client, mut accepted) = line.connect();
            client.write_all(b"again").unwrap();
            accepted.read_exact(&mut [0; 5]).unwrap();
        }
    });
}

#[test]
fn reset_reaches_both_ends_and_a_reset_of_one_the_other() {
    watched(|| {
        let mut line = Line::new();
        line.client.write_all(b"a").unwrap();
        line.accepted.read_exact(&mut [0]).unwrap();
        line.cable.reset();
        assert!(is_reset(&mut line.client) && is_reset(&mut line.accepted));
        let (mut client, mut accepted) = line.connect();
        // Closing a socket with unread bytes resets its connection (RFC 2525, 2.17).
        client.write_all(b"a").unwrap();
        accepted.write_all(b"b").unwrap();
        client.peek(&mut [0]).unwrap();
        drop(client);
        accepted.read_exact(&mut [0]).unwrap();
        assert!(is_reset(&mut accepted));
    });
}

#[test]
fn half_open_connection_is_closed_to_one_end_alone() {
    watched(|| {
        let mut line = Line::new();
        line.cable.half_open(End::Server);
        assert_eq!(rest(&mut line.accepted).unwrap(), b"");
        line.client.write_all(b"are you there?").unwrap();
        assert!(is_silent(&mut line.client));
        let (mut client, mut accepted) = line.connect();
        client.write_all(b"a").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        line.cable.reset();
        assert!(is_reset(&mut line.client) && is_reset(&mut client));
    });
}

#[test]
fn slow_cable_takes_its_time() {
    watched(|| {
        let mut line = Line::new();
        line.cable.slow(100_000);
        let begin = Instant::now();
        line.client.write_all(&bytes(20_000)).unwrap();
        line.accepted.read_exact(&mut [0; 20_000]).unwrap();
        // What it saves up at most is a tenth of that.
        assert!(begin.elapsed() >= Duration::from_millis(170), "{:?}", begin.elapsed());
        line.cable.plug();
        line.client.write_all(&bytes(20_000)).unwrap();
        line.accepted.read_exact(&mut [0; 20_000]).unwrap();
    });
}

#[test]
fn server_that_is_not_there_resets_the_client() {
    watched(|| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let cable = Cable::to(address).unwrap();
        assert!(is_reset(&mut TcpStream::connect(cable.address()).unwrap()));
        assert!(Cable::to("nowhere").is_err());
    });
}

#[test]
fn dropped_cable_closes_what_it_carried() {
    watched(|| {
        let mut line = Line::new();
        let address = line.cable.address();
        drop(line.cable);
        assert_eq!(rest(&mut line.client).unwrap(), b"");
        assert_eq!(rest(&mut line.accepted).unwrap(), b"");
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}
