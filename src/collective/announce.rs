//! Pure: what each rank says that it is to do, as numbers in shared memory, and whether all of them say the same.

use std::fmt;

use super::reduce::Reduce;
use crate::dtype::DType;
use crate::tensor::dyn_tensor::DynTensor;

/// Numbers of an announcement.
pub(super) const WORDS: usize = 16;

/// A call, as a rank announces it to the others before any of them touches a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) operation: Operation,
    /// Of both tensors.
    pub(super) dtype: DType,
    /// What it reads.
    pub(super) source: Span,
    /// What it writes to: the same as `source` where a call works in place.
    pub(super) target: Span,
}

/// What is called, with all that must be the same on every rank beside the tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Nothing but the wait: it is announced so that a rank which calls something else meanwhile is told.
    Barrier,
    /// In place.
    AllReduce(Reduce),
    /// In place; the tensor of `root` is read, those of the others are written to.
    Broadcast { root: usize },
    /// The source has as many parts as there are ranks, each as long as the target.
    ReduceScatter(Reduce),
    /// The other way round: the target has as many parts.
    AllGather,
}

/// Where a tensor lies, as all processes see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// Device and inode of its segment, and the storage's offset there: which storage it is, in any process.
    storage: [u64; 3],
    /// The byte of the storage with which it begins.
    pub(super) at: usize,
    /// Elements.
    pub(super) len: usize,
    /// Whether its elements lie one after the other. A rank that passes one which does not announces it all the same: if it only failed,
    /// the others would wait for it.
    contiguous: bool,
    /// Whether it may be written to, announced for the same reason.
    writable: bool,
}

impl Span {
    /// That of a tensor of this process.
    pub(super) fn of(tensor: &DynTensor) -> Self {
        Self {
            storage: tensor.storage_id().words(),
            at: tensor.offset() * tensor.dtype().size(),
            len: tensor.len(),
            contiguous: tensor.is_contiguous(),
            writable: tensor.storage().is_writable(),
        }
    }

    /// As numbers; [`of_words`](Self::of_words) is the way back.
    fn words(self) -> [u64; 6] {
        let flags = u64::from(self.contiguous) | u64::from(self.writable) << 1;
        let [device, inode, offset] = self.storage;
        [device, inode, offset, self.at as u64, self.len as u64, flags]
    }

    fn of_words(words: [u64; 6]) -> Self {
        let [device, inode, offset, at, len, flags] = words;
        Self {
            storage: [device, inode, offset],
            at: at as usize,
            len: len as usize,
            contiguous: flags & 1 != 0,
            writable: flags & 2 != 0,
        }
    }

    /// Whether any byte is in both, of elements of `size` bytes.
    fn overlaps(&self, other: &Self, size: usize) -> bool {
        let end = |span: &Self| span.at.saturating_add(span.len.saturating_mul(size));
        let (filled, one_storage) = (self.len > 0 && other.len > 0, self.storage == other.storage);
        filled && one_storage && self.at < end(other) && other.at < end(self)
    }
}

/// The types by their numbers in an announcement.
const DTYPES: [DType; 13] = [
    DType::Bool,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::F16,
    DType::BF16,
    DType::F32,
    DType::F64,
];

impl Announcement {
    /// As numbers, which any other process can read; [`of_words`](Self::of_words) is the way back.
    pub(super) fn words(&self) -> [u64; WORDS] {
        let (kind, detail) = match self.operation {
            Operation::Barrier => (0, 0),
            Operation::AllReduce(reduce) => (1, number(&Reduce::ALL, reduce)),
            Operation::Broadcast { root } => (2, root as u64),
            Operation::ReduceScatter(reduce) => (3, number(&Reduce::ALL, reduce)),
            Operation::AllGather => (4, 0),
        };
        let mut words = [0; WORDS];
        words[..3].copy_from_slice(&[kind, detail, number(&DTYPES, self.dtype)]);
        words[3..9].copy_from_slice(&self.source.words());
        words[9..15].copy_from_slice(&self.target.words());
        words
    }

    /// `None` when these are not the words of an announcement: any process may have written to them.
    pub(super) fn of_words(words: &[u64; WORDS]) -> Option<Self> {
        let detail = usize::try_from(words[1]).ok()?;
        let operation = match words[0] {
            0 => Operation::Barrier,
            1 => Operation::AllReduce(*Reduce::ALL.get(detail)?),
            2 => Operation::Broadcast { root: detail },
            3 => Operation::ReduceScatter(*Reduce::ALL.get(detail)?),
            4 => Operation::AllGather,
            _ => return None,
        };
        let dtype = *DTYPES.get(usize::try_from(words[2]).ok()?)?;
        let span = |from: usize| Some(Span::of_words(words[from..from + 6].try_into().ok()?));
        Some(Self { operation, dtype, source: span(3)?, target: span(9)? })
    }

    /// What is wrong with the call of a rank by itself, as the end of a sentence; `None`: nothing.
    fn fault(&self, rank: usize, nprocs: usize) -> Option<String> {
        let times = |len: usize| len.saturating_mul(nprocs);
        let needed = match self.operation {
            Operation::Barrier => return None,
            Operation::Broadcast { root } if root >= nprocs => {
                return Some(", of which there are only the ranks below that".into());
            }
            Operation::ReduceScatter(_) => (self.source.len, times(self.target.len)),
            Operation::AllGather => (self.target.len, times(self.source.len)),
            Operation::AllReduce(_) | Operation::Broadcast { .. } => (0, 0),
        };
        // The root of a broadcast is only read.
        let only_read = self.operation == Operation::Broadcast { root: rank };
        if !self.source.contiguous || !self.target.contiguous {
            Some(", which do not lie one after the other: call contiguous() first".into())
        } else if !self.target.writable && !only_read {
            Some(", which can only be read".into())
        } else if needed.0 != needed.1 {
            Some(format!(", which must be {nprocs} times as many on the one side as on the other"))
        } else if self.source != self.target && self.source.overlaps(&self.target, self.dtype.size()) {
            Some(", which overlap".into())
        } else {
            None
        }
    }

    /// Whether both are the same call with as many elements of the same type.
    fn agrees(&self, other: &Self) -> bool {
        let call = |one: &Self| (one.operation, one.dtype, one.source.len, one.target.len);
        call(self) == call(other)
    }
}

/// The place of one of them in a list that all processes have: they run one executable.
fn number<T: PartialEq>(all: &[T], one: T) -> u64 {
    // Each is in its list; the number behind the last one is read as none.
    all.iter().position(|known| *known == one).unwrap_or(all.len()) as u64
}

/// As errors have it: what a rank passed.
impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dtype, source: Span { len, .. }, target, .. } = self;
        match self.operation {
            Operation::Barrier => f.write_str("barrier"),
            Operation::AllReduce(reduce) => write!(f, "all_reduce({reduce}) of {len} {dtype}"),
            Operation::Broadcast { root } => write!(f, "broadcast of {len} {dtype} from rank {root}"),
            Operation::ReduceScatter(reduce) => {
                write!(f, "reduce_scatter({reduce}) of {len} {dtype} to {}", target.len)
            }
            Operation::AllGather => write!(f, "all_gather of {len} {dtype} to {}", target.len),
        }
    }
}

/// Whether the ranks' calls, by rank, are one.
///
/// Each rank asks this of the same words, so all get the same answer, and none has to be told. After an error none touches a tensor: all
/// of them are as far as before, and may make another call.
///
/// # Errors
/// What each rank passed, in words, and what is wrong with it.
pub(super) fn agree(all: &[Option<Announcement>]) -> Result<Vec<Announcement>, Vec<String>> {
    let known: Vec<_> = all.iter().flatten().copied().collect();
    let whole = known.len() == all.len() && known.windows(2).all(|two| two[0].agrees(&two[1]));
    let faults: Vec<_> =
        (0..all.len()).map(|rank| all[rank].and_then(|one| fault(&one, rank, all))).collect();
    if whole && faults.iter().all(Option::is_none) {
        return Ok(known);
    }
    let words =
        |one: &Option<Announcement>| one.map_or("what cannot be read".to_owned(), |one| one.to_string());
    Err(all.iter().zip(faults).map(|(one, fault)| words(one) + &fault.unwrap_or_default()).collect())
}

/// What is wrong with the call of a rank, by itself or beside those of the others.
fn fault(one: &Announcement, rank: usize, all: &[Option<Announcement>]) -> Option<String> {
    let size = one.dtype.size();
    let meets = |(other, passed): (usize, &Option<Announcement>)| {
        // What one rank writes no other may read or write; two may read the same.
        let theirs = (*passed)?;
        let meets = one.target.overlaps(&theirs.source, size) || one.target.overlaps(&theirs.target, size);
        (other != rank && meets).then(|| format!(", which overlap those of rank {other}"))
    };
    one.fault(rank, all.len()).or_else(|| all.iter().enumerate().find_map(meets))
}

/// Where the sources of all ranks begin, if they are parts of one storage, which has `room` bytes: each rank can reach them all.
pub(super) fn in_one_storage(all: &[Announcement], room: usize) -> Option<Vec<usize>> {
    let inside = |one: &Announcement| {
        let (size, source) = (one.dtype.size(), one.source);
        let end = source.len.checked_mul(size).and_then(|bytes| source.at.checked_add(bytes));
        // Of a rank's own words nothing is taken on trust.
        (end.is_some_and(|end| end <= room) && source.at.is_multiple_of(size)).then_some(source.at)
    };
    let one_storage = all.windows(2).all(|two| two[0].source.storage == two[1].source.storage);
    one_storage.then(|| all.iter().map(inside).collect()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(inode: u64, at: usize, len: usize) -> Span {
        Span { storage: [1, inode, 0], at, len, contiguous: true, writable: true }
    }

    fn in_place(operation: Operation, span: Span) -> Announcement {
        Announcement { operation, dtype: DType::F32, source: span, target: span }
    }

    const SUM: Operation = Operation::AllReduce(Reduce::Sum);

    /// What is said of each rank.
    fn refused(all: &[Announcement]) -> Vec<String> {
        agree(&all.iter().copied().map(Some).collect::<Vec<_>>()).unwrap_err()
    }

    #[test]
    fn announcement_arrives_as_it_was() {
        let operations = [
            Operation::Barrier,
            Operation::AllReduce(Reduce::Max),
            Operation::Broadcast { root: 3 },
            Operation::ReduceScatter(Reduce::Mean),
            Operation::AllGather,
        ];
        for (operation, dtype) in operations.iter().flat_map(|&one| DTYPES.map(|dtype| (one, dtype))) {
            let source = Span { contiguous: false, ..span(7, 8, 9) };
            let target = Span { writable: false, ..span(10, 11, 12) };
            let sent = Announcement { operation, dtype, source, target };
            assert_eq!(Announcement::of_words(&sent.words()), Some(sent));
        }
        for damaged in [0, 1, 2] {
            let mut words = in_place(SUM, span(1, 0, 1)).words();
            words[damaged] = u64::MAX;
            assert_eq!(Announcement::of_words(&words), None);
        }
    }

    #[test]
    fn other_calls_lengths_and_types_are_told_by_rank() {
        let four = in_place(SUM, span(1, 0, 4));
        assert!(agree(&[Some(four), Some(in_place(SUM, span(2, 0, 4)))]).is_ok());
        let text = "all_reduce(sum) of 4 f32".to_owned();
        assert_eq!(
            refused(&[four, in_place(SUM, span(2, 0, 5))])[..],
            [&text[..], "all_reduce(sum) of 5 f32"]
        );
        let other = Announcement { dtype: DType::I32, ..in_place(SUM, span(2, 0, 4)) };
        assert_eq!(refused(&[four, other])[1], "all_reduce(sum) of 4 i32");
        let other = in_place(Operation::AllReduce(Reduce::Max), span(2, 0, 4));
        assert_eq!(refused(&[other, four]), ["all_reduce(max) of 4 f32", &text]);
        assert_eq!(refused(&[four, in_place(Operation::Barrier, Span::default())]), [&text, "barrier"]);
        assert_eq!(agree(&[Some(four), None]).unwrap_err(), [&text, "what cannot be read"]);
    }

    #[test]
    fn tensors_that_do_not_do_are_told_of_their_rank() {
        let (one, two) = (span(1, 0, 4), span(2, 0, 4));
        let second =
            |operation, span| refused(&[in_place(operation, one), in_place(operation, span)]).remove(1);
        let frozen = Span { writable: false, ..two };
        assert!(second(SUM, frozen).ends_with("4 f32, which can only be read"));
        let root = Operation::Broadcast { root: 1 };
        assert!(agree(&[Some(in_place(root, one)), Some(in_place(root, frozen))]).is_ok(), "it is only read");
        assert!(second(SUM, Span { contiguous: false, ..two }).contains("call contiguous() first"));
        assert!(
            second(Operation::Broadcast { root: 2 }, two).contains("from rank 2, of which there are only")
        );
        assert!(second(SUM, span(1, 12, 4)).ends_with("which overlap those of rank 0"));
        assert!(agree(&[Some(in_place(SUM, one)), Some(in_place(SUM, span(1, 16, 4)))]).is_ok());
    }

    #[test]
    fn two_tensors_of_a_call_are_to_fit_each_other() {
        let call = |source, target| Announcement {
            operation: Operation::AllGather,
            dtype: DType::U8,
            source,
            target,
        };
        let other = Some(call(span(1, 4, 2), span(3, 0, 4)));
        assert!(agree(&[Some(call(span(1, 0, 2), span(2, 0, 4))), other]).is_ok());
        let said = |one| agree(&[Some(one), other]).unwrap_err().remove(0);
        assert!(said(call(span(1, 0, 2), span(2, 0, 5))).contains("2 times as many"));
        assert!(said(call(span(2, 3, 2), span(2, 0, 4))).ends_with(", which overlap"));
        assert!(said(call(span(1, 0, 2), span(1, 2, 4))).ends_with("overlap those of rank 1"));
    }

    #[test]
    fn one_storage_has_all_sources_inside_or_is_none() {
        let all = |spans: [Span; 2]| spans.map(|span| in_place(SUM, span));
        assert_eq!(in_one_storage(&all([span(1, 16, 4), span(1, 0, 4)]), 32), Some(vec![16, 0]));
        assert_eq!(in_one_storage(&all([span(1, 16, 4), span(2, 0, 4)]), 32), None);
        for outside in [span(1, 20, 4), span(1, usize::MAX - 3, 4), span(1, 0, usize::MAX), span(1, 2, 4)] {
            assert_eq!(in_one_storage(&all([span(1, 0, 4), outside]), 32), None);
        }
    }
}
