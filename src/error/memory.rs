//! What can go wrong with shared memory.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::limit::{InBrackets, limit_met};
use crate::dtype::DType;
use crate::sys::bytes::Bytes;
use crate::sys::limits::Shortage;
use crate::sys::memory::Available;

/// What can go wrong with a [`Storage`](crate::Storage), a [`Tensor`](crate::Tensor) and what is made of them.
///
/// ```
/// use phalanx::{MemoryError, Tensor};
///
/// // More than any machine has: refused before a page is touched.
/// let error = Tensor::<f32>::zeros(&[1 << 40]).unwrap_err();
/// let MemoryError::NotEnough { asked, available, .. } = error else { panic!("{error}") };
/// assert!(asked > available);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// More was asked for than there is.
    #[error(
        "cannot get {}{}: only {} are available{}{}",
        Bytes(*.asked), For(.tensor.as_ref()), Bytes(*.available), In(.directory.as_ref()), InBrackets(.limit.as_deref())
    )]
    NotEnough {
        /// Bytes asked for.
        asked: u64,
        /// The tensor that they were for, if it was one.
        tensor: Option<(DType, Vec<usize>)>,
        /// Bytes that are left: of the machine, of this process's cgroup and those above it, of its address space
        /// (RLIMIT_AS), or of the file system.
        available: u64,
        /// The limit that leaves no more, with its numbers; `None`: the machine or the file system has no more.
        limit: Option<String>,
        /// The directory whose file system is full; `None`: it is the machine's memory.
        directory: Option<PathBuf>,
    },

    /// Huge pages were required, and the system has too few.
    #[error(
        "cannot get {} in huge pages of {}: only {free} are free; reserve more in /proc/sys/vm/nr_hugepages, or ask for \
         HugePages::Preferred",
        Bytes(*.asked), Bytes(*.page)
    )]
    NoHugePages {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of one huge page; 0 when the kernel has none.
        page: u64,
        /// How many are free.
        free: u64,
    },

    /// A shape whose size in bytes does not fit in the address space.
    #[error("a tensor of shape {shape:?} with elements of {element} bytes is larger than the address space")]
    TooLarge {
        /// The shape.
        shape: Vec<usize>,
        /// Bytes of one element.
        element: usize,
    },

    /// More of something than there can be.
    #[error("{asked} {what} were asked for, of which there can be {most} at most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were asked for.
        asked: usize,
        /// How many there can be.
        most: usize,
    },

    /// The number of elements does not fit the shape.
    #[error("{given} elements do not fit a tensor of shape {shape:?}, which has {expected}")]
    LengthMismatch {
        /// How many were given.
        given: usize,
        /// How many the shape has.
        expected: usize,
        /// The shape.
        shape: Vec<usize>,
    },

    /// The shapes of two tensors differ that must be the same.
    #[error("a tensor of shape {found:?} cannot be copied over one of shape {expected:?}")]
    OtherShape {
        /// The source's.
        found: Vec<usize>,
        /// The target's.
        expected: Vec<usize>,
    },

    /// An index that the tensor does not have.
    #[error("index {index:?} is outside of a tensor of shape {shape:?}{}", Places(.index, .shape))]
    OutOfBounds {
        /// The index, or the one in row-major order.
        index: Vec<usize>,
        /// The shape.
        shape: Vec<usize>,
    },

    /// A dimension, or a part of one, that the tensor does not have.
    #[error("{what} does not exist in a tensor of shape {shape:?}")]
    NoSuchPart {
        /// What was asked for, and of which dimension.
        what: String,
        /// The shape.
        shape: Vec<usize>,
    },

    /// The elements do not lie one after the other, as is needed here.
    #[error(
        "a tensor of shape {shape:?} with strides {strides:?} cannot be {wanted} without a copy: call contiguous() first"
    )]
    NotContiguous {
        /// What it was to become.
        wanted: String,
        /// The shape.
        shape: Vec<usize>,
        /// The distances of elements, in elements, by dimension.
        strides: Vec<usize>,
    },

    /// The elements are of another type.
    #[error("this is a tensor of {found}, not of {expected}")]
    WrongType {
        /// What they are.
        found: DType,
        /// What was asked for.
        expected: DType,
    },

    /// Tensors of different element sizes over one storage: processes that access the same bytes by atomics of different
    /// sizes would have no defined behaviour.
    #[error("this storage has elements of {found} bytes: it cannot have elements of {asked} bytes too")]
    OtherSize {
        /// Bytes of an element of the tensors over it.
        found: usize,
        /// Bytes of an element of the one that was to be made.
        asked: usize,
    },

    /// A write to memory that can only be read: a file's, or one that is frozen.
    #[error("cannot write to this memory, which is frozen or a file's: write to a copy of it")]
    ReadOnly,

    /// Memory that is to be frozen can still be written through a writable map of it.
    #[error("cannot freeze {bytes} bytes: {holder} can still write to them")]
    StillWritable {
        /// Size of the memory.
        bytes: usize,
        /// The process, or the part of the program, that can still write, in words.
        holder: &'static str,
    },

    /// A tensor that has no dimension to be divided along, or is to be divided into no parts.
    #[error("cannot divide a tensor of shape {shape:?} into {parts} shards: {reason}")]
    CannotDivide {
        /// The shape.
        shape: Vec<usize>,
        /// Into how many parts.
        parts: usize,
        /// Why.
        reason: &'static str,
    },

    /// A shard was used after it was sent to another process, or by a fork of the process that has it.
    #[error("shard {index} of {of} is not here: {reason}")]
    ShardGone {
        /// Which shard, from zero.
        index: usize,
        /// Of how many.
        of: usize,
        /// Where it is.
        reason: &'static str,
    },

    /// Shards that do not make up one whole tensor.
    #[error("{given} shards do not make up a tensor: {reason}")]
    NotAllShards {
        /// How many were given.
        given: usize,
        /// What is missing.
        reason: String,
    },

    /// A name that no sharing strategy has.
    #[error("there is no sharing strategy {name:?}: the valid ones are {}", .valid.join(", "))]
    UnknownStrategy {
        /// The name.
        name: String,
        /// All names.
        valid: Vec<&'static str>,
    },

    /// The directory for named memory cannot be used or changed.
    #[error("cannot use {} for named memory: {reason}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },

    /// A file of another library's format cannot be read or written.
    #[error("{doing} {}: {reason}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },

    /// The data of another library cannot become a tensor.
    #[error("cannot take over foreign data: {reason}")]
    Foreign {
        /// Why.
        reason: String,
    },

    /// The system refused.
    #[error("{doing} of {}: {os}{}", Bytes(*.bytes), InBrackets(.hint.as_deref()))]
    Os {
        /// The system call.
        doing: &'static str,
        /// The size that was asked for.
        bytes: u64,
        /// What the system said.
        os: io::Error,
        /// The limit that it probably met, with its numbers, and what to do about it.
        hint: Option<String>,
    },
}

impl MemoryError {
    /// Says for which tensor the memory was.
    pub(crate) fn of_tensor(self, dtype: DType, shape: &[usize]) -> Self {
        match self {
            Self::NotEnough { asked, tensor: _, available, limit, directory } => {
                let tensor = Some((dtype, shape.to_vec()));
                Self::NotEnough { asked, tensor, available, limit, directory }
            }
            other => other,
        }
    }

    /// For `map_err`: names what was being done to that number of bytes when the system refused.
    pub(crate) fn os(doing: &'static str, bytes: u64) -> impl FnOnce(io::Error) -> Self {
        move |os| Self::Os { doing, bytes, hint: hint(&os), os }
    }

    /// Says that fewer bytes than that can be allocated.
    pub(crate) fn not_enough(asked: u64, available: Option<&Available>) -> Self {
        let limit = available.and_then(Available::limit);
        Self::NotEnough {
            asked,
            available: available.map_or(0, |available| available.bytes),
            limit,
            directory: None,
            tensor: None,
        }
    }
}

/// The words of such an error, with the limit that it met and what to do about it.
pub(crate) fn with_hint(error: &io::Error) -> String {
    format!("{error}{}", InBrackets(hint(error).as_deref()))
}

fn hint(error: &io::Error) -> Option<String> {
    match Shortage::of(error)? {
        Shortage::Descriptors => Some(format!(
            "{}; tensors of up to 256 KiB share descriptors, and SharingStrategy::FileSystem needs one a process",
            limit_met(error)?
        )),
        // No call on memory or a queue makes a process.
        Shortage::Processes => None,
        _ => limit_met(error),
    }
}

/// What memory was for.
struct For<'a>(Option<&'a (DType, Vec<usize>)>);

impl fmt::Display for For<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |(dtype, shape)| write!(f, " for a tensor of {dtype} of shape {shape:?}"))
    }
}

/// Where memory was to be.
struct In<'a>(Option<&'a PathBuf>);

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |path| write!(f, " in {}", path.display()))
    }
}

/// For an index that has not as many numbers as the tensor has dimensions.
struct Places<'a>(&'a [usize], &'a [usize]);

impl fmt::Display for Places<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.len(), self.1) {
            (1, shape) if shape.len() != 1 => write!(f, " of {} elements", elements(shape)),
            (given, shape) if given != shape.len() => write!(f, ", which has {} dimensions", shape.len()),
            _ => Ok(()),
        }
    }
}

/// A zero makes it zero, whatever else there is.
fn elements(shape: &[usize]) -> usize {
    shape.iter().fold(1, |product: usize, &size| if size == 0 { 0 } else { product.saturating_mul(size) })
}
