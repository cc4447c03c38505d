//! The report slot: a memfd that a worker fills, and that the launcher reads when the worker has ended. Before that the launcher
//! only looks whether the report is whole.
//!
//! It has a page of fixed fields, which the worker has mapped, so that even a signal handler can write them; seven pages for the
//! worker's list of modules; then the body, a result or an error. The launcher never maps it: it reads by pread(2), so that a
//! worker that changes or truncates its slot causes an error in the launcher, and no signal.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use serde::Serialize;

use super::codec;
use super::lifecycle::State;
use crate::memory::worker_dir::WorkerDir;
use crate::sys::clock::Moment;
use crate::sys::forks::Here;
use crate::sys::image::Module;
use crate::sys::map::SharedMap;
use crate::sys::memfd;
use crate::sys::signal::{Fault, Signal};

// The offsets of the fields, and their largest sizes, in bytes. docs/architecture.md has them as a table.
const STATE: usize = 0;
const MODULES_LEN: usize = 4;
const FAILED_AT: usize = 8;
const BODY_LEN: usize = 16;
const NOTE_LEN: usize = 24;
const PEAK_KIB: usize = 32;
const FAULT_SIGNAL: usize = 40;
const FRAME_COUNT: usize = 44;
const FAULT_ADDRESS: usize = 48;
const FAULT_STACK: usize = 56;
const FAULT_CLAIM: usize = 64;
const NOTE: usize = 72;
const NOTE_MAX: usize = 2048;
const FRAMES: usize = NOTE + NOTE_MAX;
const FRAMES_MAX: usize = 128;
const MODULES: usize = 4096;
const MODULES_MAX: usize = 28 * 1024;
const BODY: usize = MODULES + MODULES_MAX;

/// A list of modules as it is written into a slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct ModuleList(Vec<u8>);

impl ModuleList {
    /// The first modules, as many as there is room for.
    pub(crate) fn of(modules: &[Module]) -> Self {
        /// Bytes for the number of modules, which is written before them: more than it takes.
        const NUMBER: usize = 16;
        let mut room = MODULES_MAX - NUMBER;
        let fits = |module: &&Module| {
            let bytes = codec::encode_plain(&Self::record(module)).ok();
            let left = bytes.and_then(|bytes| room.checked_sub(bytes.len()));
            left.map(|left| room = left).is_some()
        };
        let fitting: Vec<_> = modules.iter().take_while(fits).map(Self::record).collect();
        Self(codec::encode_plain(&fitting).unwrap_or_default())
    }

    /// A module as a sequence: without the names of its fields, which would take room, it is read as the same struct.
    fn record(module: &Module) -> impl Serialize {
        let Module { name, build_id, bias, start, end } = module;
        (name, build_id, bias, start, end)
    }
}

/// The worker's end of its report slot. In a process that the user's function forks, the copy writes nothing.
#[derive(Debug)]
pub(crate) struct SlotWriter {
    map: SharedMap,
    file: File,
    identity: (u64, u64),
    owner: Here,
}

impl SlotWriter {
    /// Maps the fixed fields of an inherited slot.
    ///
    /// # Errors
    /// When the descriptor is none of a slot: a memfd that is too small would raise SIGBUS when it is written (mmap(2)).
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let (identity, size) = memfd::identity(fd.as_fd())?;
        if size < BODY as u64 {
            return Err(io::Error::other(format!("the report slot has {size} bytes, not {BODY}")));
        }
        let map = SharedMap::new(fd.as_fd(), BODY)?;
        Ok(Self { map, file: File::from(fd), identity, owner: Here::now() })
    }

    /// Whether this process is the worker, and not one that it forked. Async-signal-safe.
    pub(crate) fn is_own(&self) -> bool {
        self.owner.is_now()
    }

    /// How far this worker has come. Async-signal-safe.
    pub(crate) fn state(&self) -> State {
        State::from_word(self.map.u32(STATE).load(Acquire))
    }

    /// Enters the next state. It is the only place where a worker's state changes, and only its main thread comes here, so
    /// that a load and a store are enough; exit hooks and signal handlers read the state.
    pub(crate) fn advance(&self, next: State) {
        if !self.is_own() {
            return;
        }
        debug_assert!(self.state().may_become(next), "{:?} -> {next:?}", self.state());
        // Release: the launcher reads by pread(2) what was stored before, once it has seen the state.
        self.map.u32(STATE).store(next as u32, Release);
    }

    /// Writes the list of modules, by which the launcher names the frames of a crash.
    pub(crate) fn set_modules(&self, modules: &ModuleList) {
        self.map.write(MODULES, &modules.0, 1);
        self.map.u32(MODULES_LEN).store(modules.0.len() as u32, Release);
    }

    /// Writes a note, which is shown if no report follows.
    pub(crate) fn set_note(&self, note: &str) {
        if !self.is_own() {
            return;
        }
        let bytes = &note.as_bytes()[..note.floor_char_boundary(NOTE_MAX)];
        self.map.write(NOTE, bytes, 1);
        self.map.u32(NOTE_LEN).store(bytes.len() as u32, Release);
    }

    /// Stamps the moment of failure. The first stamp stays. Async-signal-safe.
    pub(crate) fn set_failed_at(&self, moment: Moment) {
        if !self.is_own() {
            return;
        }
        // An exchange, no store: the main thread and the exit hook may both stamp.
        let _ = self.map.u64(FAILED_AT).compare_exchange(0, moment.as_nanos(), Release, Relaxed);
    }

    /// Claims the record of a fatal signal for the thread `tid`; otherwise returns the tid of the thread that has claimed it before.
    /// Async-signal-safe.
    pub(crate) fn claim_fault(&self, tid: u32) -> Result<(), u32> {
        self.map.u32(FAULT_CLAIM).compare_exchange(0, tid, Relaxed, Relaxed).map(drop)
    }

    /// Records a fatal signal. Async-signal-safe.
    pub(crate) fn set_fault(&self, fault: &Fault) {
        self.map.u64(FAULT_ADDRESS).store(fault.address, Relaxed);
        self.map.u64(FAULT_STACK).store(fault.stack, Relaxed);
        self.map.u32(FAULT_SIGNAL).store(fault.signal.number() as u32, Release);
    }

    /// Adds a frame of the fatal signal's traceback; false when there is no more room. Async-signal-safe.
    pub(crate) fn add_frame(&self, address: u64) -> bool {
        let count = self.map.u32(FRAME_COUNT);
        let place = count.load(Relaxed) as usize;
        if place >= FRAMES_MAX {
            return false;
        }
        self.map.u64(FRAMES + 8 * place).store(address, Relaxed);
        count.store(place as u32 + 1, Release);
        true
    }

    /// Writes the body, then enters `state`, which says that the body is whole.
    ///
    /// # Errors
    /// When there is no room, or the user's function has closed the slot's descriptor.
    pub(crate) fn finish(&self, state: State, body: &[u8], peak_kib: u64) -> io::Result<()> {
        if !self.is_own() {
            return Ok(());
        }
        if memfd::identity(self.file.as_fd())?.0 != self.identity {
            return Err(io::Error::other("its descriptor was closed, and its number is another file's"));
        }
        // A write beyond RLIMIT_FSIZE raises SIGXFSZ, which kills: the limit is read first.
        memfd::check_file_size((BODY + body.len()) as u64)?;
        self.file.write_all_at(body, BODY as u64)?;
        self.map.u64(BODY_LEN).store(body.len() as u64, Relaxed);
        self.map.u64(PEAK_KIB).store(peak_kib, Relaxed);
        self.advance(state);
        Ok(())
    }
}

/// The launcher's end of a worker's report slot.
#[derive(Debug)]
pub(crate) struct Slot {
    file: File,
    /// The worker's directory of named memory, which is removed when the slot is dropped.
    worker_dir: Option<WorkerDir>,
}

/// The fixed fields of a slot, read.
#[derive(Clone, Debug)]
pub(crate) struct SlotHeader {
    pub(crate) state: State,
    /// When the worker failed or was interrupted by a fatal signal, if it recorded that.
    pub(crate) failed_at: Option<Moment>,
    pub(crate) note: Option<String>,
    /// The most memory that the worker had resident when it reported, in KiB; 0: not recorded.
    pub(crate) peak_kib: u64,
    pub(crate) fault: Option<FaultRecord>,
    body_len: u64,
}

/// The record of a fatal signal, which the worker's handler wrote.
#[derive(Clone, Debug)]
pub(crate) struct FaultRecord {
    pub(crate) signal: Signal,
    pub(crate) address: u64,
    pub(crate) stack: u64,
    pub(crate) frames: Vec<u64>,
    pub(crate) modules: Vec<Module>,
}

impl Slot {
    /// An empty slot for one worker.
    pub(crate) fn new(worker_dir: Option<WorkerDir>) -> io::Result<Self> {
        Ok(Self { file: File::from(memfd::create("phalanx-report", BODY as u64)?), worker_dir })
    }

    pub(crate) fn worker_dir(&self) -> Option<&WorkerDir> {
        self.worker_dir.as_ref()
    }

    /// Whether the report is whole. It can be while the worker still exits.
    pub(crate) fn is_whole(&self) -> io::Result<bool> {
        let mut word = [0; 4];
        self.file.read_exact_at(&mut word, STATE as u64)?;
        Ok(State::from_word(u32::from_ne_bytes(word)).is_whole())
    }

    /// Reads the fixed fields.
    pub(crate) fn header(&self) -> io::Result<SlotHeader> {
        let mut bytes = vec![0; MODULES];
        self.file.read_exact_at(&mut bytes, 0)?;
        let fields = Fields(&bytes);
        let fault = match Signal::new(fields.u32(FAULT_SIGNAL) as i32) {
            Some(signal) => Some(self.fault(signal, &fields)?),
            None => None,
        };
        Ok(SlotHeader {
            state: State::from_word(fields.u32(STATE)),
            failed_at: Some(fields.u64(FAILED_AT)).filter(|&nanos| nanos != 0).map(Moment::from_nanos),
            note: fields.note(),
            peak_kib: fields.u64(PEAK_KIB),
            fault,
            body_len: fields.u64(BODY_LEN),
        })
    }

    fn fault(&self, signal: Signal, fields: &Fields<'_>) -> io::Result<FaultRecord> {
        let count = (fields.u32(FRAME_COUNT) as usize).min(FRAMES_MAX);
        let mut modules = vec![0; (fields.u32(MODULES_LEN) as usize).min(MODULES_MAX)];
        self.file.read_exact_at(&mut modules, MODULES as u64)?;
        Ok(FaultRecord {
            signal,
            address: fields.u64(FAULT_ADDRESS),
            stack: fields.u64(FAULT_STACK),
            frames: (0..count).map(|place| fields.u64(FRAMES + 8 * place)).collect(),
            // Without the list the frames are shown as bare addresses.
            modules: codec::decode_plain(&modules).unwrap_or_default(),
        })
    }

    /// Reads the body, of the length that `header` has.
    pub(crate) fn body(&self, header: &SlotHeader) -> Result<Vec<u8>, String> {
        // The worker wrote the length, and may have damaged it: it is compared with the size of the file before memory is allocated.
        let room = self.file.metadata().map_err(|error| error.to_string())?.len().saturating_sub(BODY as u64);
        if header.body_len > room {
            return Err(format!("{} bytes were announced, but only {room} are there", header.body_len));
        }
        let len = usize::try_from(header.body_len).map_err(|error| error.to_string())?;
        let mut body = Vec::new();
        body.try_reserve_exact(len).map_err(|error| format!("{len} bytes: {error}"))?;
        body.resize(len, 0);
        self.file.read_exact_at(&mut body, BODY as u64).map_err(|error| error.to_string())?;
        Ok(body)
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The first page, read by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0[at..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> u64 {
        self.0[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    fn note(&self) -> Option<String> {
        let len = (self.u32(NOTE_LEN) as usize).min(NOTE_MAX);
        (len > 0).then(|| String::from_utf8_lossy(&self.0[NOTE..NOTE + len]).into_owned())
    }
}

#[cfg(test)]
mod tests;
