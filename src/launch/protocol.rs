//! What is said on a job's socket: one request from each visitor, and answers to it. Requests and answers are JSON, one a message; what
//! workers print as they print it is in the pump's packets between them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Counted up when an older program would misunderstand.
const VERSION: u32 = 1;
/// The most bytes of a request.
pub(super) const LONGEST_REQUEST: usize = 4096;
/// The most bytes of an answer. A socket takes that much at once.
pub(super) const LONGEST_ANSWER: usize = 128 * 1024;

/// The name of a job's socket begins so: the user's number keeps the jobs of different users apart.
pub(super) fn socket_name(user: u32, job: &str) -> String {
    format!("phalanx-{user}-{job}")
}

/// The most characters of a name: a socket's has room for it behind the user's number.
const LONGEST_NAME: usize = 64;

/// Whether it may be a job's name.
pub(super) fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_plain)
}

/// The message of a visitor.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    /// That of the visitor, which is read before all else.
    version: u32,
    ask: Ask,
}

/// What a visitor asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// How the job does; [`Answer::Status`] is the answer.
    Status,
    /// To end the job as by SIGTERM, or at once; the end is answered, too.
    Stop {
        /// Whether workers are killed without waiting for them.
        kill: bool,
    },
    /// What these ranks have printed, as ranges with both their ends (none: all ranks), and what they will print.
    Logs { ranks: Vec<(usize, usize)>, follow: bool },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// To [`Ask::Status`].
    Status(JobStatus),
    /// The job was told to stop. [`Ended`](Self::Ended) follows.
    Stopping,
    /// The job has ended. The launcher closes the connection when nothing of the job is left.
    Ended(Stopped),
    /// Where the logs are. A follower is told again when another attempt has begun.
    Logs(Places),
    /// Why there is no answer, in a sentence.
    Refused(String),
}

/// Where what workers print can be read: in files, or, in the descriptor beside the first answer, as a [`Chunk`] for each stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Places {
    /// The directory of the attempt's files, as an absolute path; `None`: nothing goes to files.
    pub(super) dir: Option<PathBuf>,
    /// By rank: 1 if stdout goes to a file, 2 if stderr does, and their sum.
    pub(super) files: Vec<u8>,
    /// The template of which the prefix of each rank is made, with the role.
    pub(super) prefix: String,
    pub(super) role: String,
}

/// How a running job does: what [`RunningJob::status`](super::RunningJob::status) returns, at the moment of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JobStatus {
    /// The job's name.
    pub job: String,
    /// The pid of its launcher in the launcher's own PID namespace.
    pub launcher: u32,
    /// The command line of its workers, at most 1,000 characters of it.
    pub program: String,
    /// How many workers have not ended. Between two attempts none runs.
    pub running: usize,
    /// How many workers there are in an attempt.
    pub workers: usize,
    /// The number of the attempt, from 0 on. Between two attempts it is that of the last one.
    pub attempt: usize,
    /// How often the job may be restarted in all: [`Launch::max_restarts`](super::Launch::max_restarts).
    pub max_restarts: usize,
    /// How long the job has run, all attempts and the pauses between them included, by CLOCK_MONOTONIC.
    pub age: Duration,
}

/// How a job has ended that was told to stop: what [`RunningJob::stop`](super::RunningJob::stop) returns. The launcher has the whole
/// [`Summary`](super::Summary).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stopped {
    /// The exit code that stands for it in a shell: 143, unless it had ended by itself before it was told.
    pub exit_code: i32,
    /// The ranks that the launcher had to kill (SIGKILL), as they had not ended within the shutdown timeout, in ascending order.
    pub killed: Vec<usize>,
}

impl Ask {
    /// The message of a question, with this version.
    pub(super) fn encode(&self) -> Vec<u8> {
        let request = Request { version: VERSION, ask: self.clone() };
        serde_json::to_vec(&request).expect("a request has only what JSON has")
    }

    /// Takes a request apart.
    ///
    /// # Errors
    /// A sentence for the visitor.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match serde_json::from_slice::<Versioned>(bytes) {
            Ok(Versioned { version: VERSION }) => {}
            Ok(Versioned { version }) => {
                return Err(format!(
                    "the launcher speaks version {VERSION} of the protocol and was asked in version {version}: use the `phalanx` that \
                     has started the job"
                ));
            }
            Err(error) => return Err(format!("what was asked is no request: {error}")),
        }
        let request: Result<Request, _> = serde_json::from_slice(bytes);
        request.map(|request| request.ask).map_err(|error| format!("what was asked is no request: {error}"))
    }
}

impl Answer {
    /// The message of an answer.
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an answer has only what JSON has")
    }

    /// Takes an answer apart; `None`: it is of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The last bytes of a stream, as they lie one after the other in the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk<'a> {
    /// The pump's number of the stream.
    pub(super) channel: u64,
    pub(super) bytes: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// The 16 bytes before the chunk's own: the channel and the number of bytes, each as a u64, little-endian.
    pub(super) fn header(&self) -> [u8; 16] {
        let [channel, length] = [self.channel, self.bytes.len() as u64].map(u64::to_le_bytes);
        std::array::from_fn(|at| if at < 8 { channel[at] } else { length[at - 8] })
    }

    /// The first one, and what follows; `None`: there is none, or not the whole of it.
    pub(super) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (channel, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        let (bytes, rest) = rest.split_at_checked(length)?;
        Some((Self { channel: u64::from_le_bytes(*channel), bytes }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_are_what_they_were() {
        for ask in
            [Ask::Status, Ask::Stop { kill: true }, Ask::Logs { ranks: vec![(0, 3), (7, 7)], follow: true }]
        {
            assert_eq!(Ask::decode(&ask.encode()), Ok(ask));
        }
        let answer = Answer::Ended(Stopped { exit_code: 143, killed: vec![2] });
        assert_eq!(Answer::decode(&answer.encode()), Some(answer));
    }

    #[test]
    fn what_is_no_request_or_of_another_version_is_refused_with_a_reason() {
        for bytes in
            [&b""[..], b"\xff\0", b"[]", b"{}", b"{\"version\":1}", br#"{"version":1,"ask":"Dance"}"#]
        {
            assert!(Ask::decode(bytes).unwrap_err().contains("no request"));
        }
        let newer = Ask::decode(br#"{"version":2,"ask":{"Stop":{"softly":true}}}"#).unwrap_err();
        assert!(newer.contains("speaks version 1 of the protocol and was asked in version 2"), "{newer}");
        // Brackets without end are refused before they fill the stack.
        assert!(Ask::decode(&[b'['; LONGEST_REQUEST]).is_err());
    }

    #[test]
    fn chunks_lie_one_after_the_other_and_a_part_of_one_is_none() {
        let (one, two) = (Chunk { channel: 1, bytes: b"one" }, Chunk { channel: 9, bytes: b"" });
        let all = [&one.header()[..], one.bytes, &two.header(), two.bytes].concat();
        let (first, rest) = Chunk::split(&all).unwrap();
        assert_eq!((first, Chunk::split(rest)), (one, Some((two, &[][..]))));
        assert_eq!(Chunk::split(&all[..18]), None);
    }

    #[test]
    fn names_are_plain_words() {
        assert!(["a", "train-7.b_c", &"x".repeat(64)].into_iter().all(is_name));
        assert!(!["", "a b", "a/b", "a\n", "ä", "@a", &"x".repeat(65)].into_iter().any(is_name));
    }
}
