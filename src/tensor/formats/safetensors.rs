//! Files of the safetensors format: their tensors in shared memory, and back.
//!
//! [`load`] and [`load_frozen`] put all tensors of a file into one piece of memory, each at a multiple of 64 bytes. The system
//! reads them straight into it, so each byte is copied once. [`save`] writes tensors of any layout.
//!
//! ```
//! use phalanx::shm::{DType, safetensors};
//! use phalanx::{DynTensor, Tensor};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("model.safetensors");
//! let weights = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0], &[2, 2])?.into_dyn();
//! let steps = DynTensor::zeros(DType::I64, &[])?;
//! safetensors::save(&path, [("weights", &weights), ("steps", &steps)])?;
//!
//! let model = safetensors::load_frozen(&path)?;
//! let weights = model["weights"].typed::<f32>()?.freeze()?;
//! assert_eq!((weights.shape(), &weights[..]), (&[2, 2][..], &[1.0, 2.0, 3.0, 4.0][..]));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata, TensorInfo};

use super::super::dyn_tensor::DynTensor;
use crate::dtype::DType;
use crate::error::MemoryError;
use crate::memory::arena::ALIGN;
use crate::memory::storage::Storage;
use crate::sys::replace;

/// Bytes of the header's length, which comes first.
const PREFIX: u64 = 8;
/// What the format allows for the header.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;
/// The header's entry that is no tensor.
const RESERVED: &str = "__metadata__";

/// Loads the tensors of a file, by name. They lie in one piece of memory, which can be written to.
///
/// Its memory goes with the last of them, and none can be frozen in place: see [`load_frozen`].
///
/// # Errors
/// [`MemoryError::File`] when it cannot be read, is damaged, or has a tensor of a type that phalanx does not have; as
/// [`Storage::new`].
pub fn load(path: impl AsRef<Path>) -> Result<BTreeMap<String, DynTensor>, MemoryError> {
    let source = Source::open(path.as_ref())?;
    let storage = Storage::new(source.room)?;
    source.fill(&storage)?;
    source.tensors(&storage)
}

/// As [`load`], in sealed memory: to [freeze](crate::Tensor::freeze) one costs nothing.
///
/// ```
/// # phalanx::auto_init!();
/// use phalanx::shm::safetensors;
/// use phalanx::{FrozenTensor, Tensor, spawn};
///
/// fn sum(_: usize, weights: FrozenTensor<f32>) -> anyhow::Result<f32> {
///     Ok(weights.iter().sum())
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("model.safetensors");
/// # safetensors::save(&path, [("weights", Tensor::from_slice(&[0.5_f32, 1.5], &[2])?.as_dyn())])?;
/// let model = safetensors::load_frozen(&path)?;
/// let weights = model["weights"].typed::<f32>()?.freeze()?;
/// assert_eq!(spawn(sum, weights, 2)?, [2.0, 2.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`load`].
pub fn load_frozen(path: impl AsRef<Path>) -> Result<BTreeMap<String, DynTensor>, MemoryError> {
    let source = Source::open(path.as_ref())?;
    // Memory of no bytes is never written to: it needs no seal.
    if source.room == 0 {
        return source.tensors(&Storage::new(0)?);
    }
    let storage = Storage::sealable(source.room)?;
    source.fill(&storage)?;
    let (sealed, done) = storage.freeze();
    done?;
    source.tensors(&sealed)
}

/// Saves tensors, each under its name, in row-major order.
///
/// The file takes the place of one that is there when it is complete, and has its mode; a new one has what the umask leaves of
/// 0666. Where `path` is a symbolic link, the file that it leads to is replaced. What is no regular file, such as a pipe, is
/// written to. The elements of one tensor at a time are in memory twice. What another process writes meanwhile is saved or not.
/// The file is not synced to its disk.
///
/// # Errors
/// [`MemoryError::File`] when it cannot be written, or two tensors have the same name. The file that was there is as it was.
pub fn save<'a, N: AsRef<str>>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = (N, &'a DynTensor)>,
) -> Result<(), MemoryError> {
    let (path, mut by_name) = (path.as_ref(), BTreeMap::new());
    let failed = |reason: String| failed("saving", path, reason);
    for (name, tensor) in tensors {
        let name = name.as_ref();
        if name == RESERVED {
            return Err(failed(format!("no tensor can be called {name:?}")));
        }
        if by_name.insert(name.to_owned(), tensor).is_some() {
            return Err(failed(format!("two tensors are called {name:?}")));
        }
    }
    let mut ordered: Vec<_> = by_name.into_iter().collect();
    // By size of their elements, the largest first, so that each is aligned: the order of the format's own crate.
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(to_file(tensor.dtype())));
    let header = header_of(&ordered).map_err(failed)?;
    let written = replace::write(path, |file| {
        let mut file = BufWriter::with_capacity(BUFFER, file);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        ordered.iter().try_for_each(|(_, tensor)| file.write_all(&bytes_of(tensor)))?;
        file.flush()
    });
    written.map_err(|error| failed(error.to_string()))
}

/// The header of a file in which the tensors lie in that order.
fn header_of(tensors: &[(String, &DynTensor)]) -> Result<Vec<u8>, String> {
    let mut at = 0_usize;
    let info = |(name, tensor): &(String, &DynTensor)| {
        let from = at;
        at = at.saturating_add(tensor.len() * tensor.dtype().size());
        let (dtype, shape) = (to_file(tensor.dtype()), tensor.shape().to_vec());
        (name.clone(), TensorInfo { dtype, shape, data_offsets: (from, at) })
    };
    let infos = tensors.iter().map(info).collect();
    let metadata = Metadata::new(None, infos).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(PREFIX as usize), b' ');
    if header.len() as u64 > MAX_HEADER {
        return Err(format!("its header would have {} bytes, more than {MAX_HEADER}", header.len()));
    }
    Ok(header)
}

/// A tensor's elements as they are in a file.
fn bytes_of(tensor: &DynTensor) -> Vec<u8> {
    let mut bytes = tensor.to_bytes();
    if tensor.dtype() == DType::Bool {
        // Here any byte but zero is true; readers of the file know only 1.
        bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
    }
    bytes
}

fn failed(doing: &'static str, path: &Path, reason: impl ToString) -> MemoryError {
    MemoryError::File { doing, path: path.to_owned(), reason: reason.to_string() }
}

/// A file whose header was read and believed.
struct Source<'a> {
    path: &'a Path,
    file: File,
    /// Where in the file the data begin.
    data: u64,
    tensors: Vec<Planned>,
    /// Bytes of the storage that all tensors fit in.
    room: usize,
}

/// A tensor of the file, and where it goes.
struct Planned {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// Where in the data its bytes begin, and how many they are.
    from: u64,
    len: usize,
    /// Where in the storage they go.
    at: usize,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self, MemoryError> {
        let failed = |reason: String| failed("loading", path, reason);
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let (metadata, data) = read_header(&file).map_err(failed)?;
        let mut source = Self { path, file, data, tensors: Vec::new(), room: 0 };
        for name in metadata.offset_keys() {
            if let Some(info) = metadata.info(&name) {
                source.plan(name, info).map_err(failed)?;
            }
        }
        Ok(source)
    }

    /// Gives a tensor its place behind the others.
    fn plan(&mut self, name: String, info: &TensorInfo) -> Result<(), String> {
        let dtype = from_file(info.dtype).ok_or_else(|| {
            format!("tensor {name:?} is of type {}, which phalanx does not have", info.dtype)
        })?;
        let ((from, to), at) = (info.data_offsets, self.room);
        let len = to - from;
        let end = at.checked_add(len).and_then(|end| end.checked_next_multiple_of(ALIGN));
        self.room = end.ok_or("the data are larger than the address space")?;
        self.tensors.push(Planned { name, dtype, shape: info.shape.clone(), from: from as u64, len, at });
        Ok(())
    }

    /// Reads the data straight into their places.
    fn fill(&self, storage: &Storage) -> Result<(), MemoryError> {
        let Some((map, begin)) = storage.bytes() else { return Ok(()) };
        self.tensors.iter().try_for_each(|tensor| {
            let filled = map.fill_from(&self.file, self.data + tensor.from, begin + tensor.at, tensor.len);
            filled.map_err(|error| failed("loading", self.path, format!("tensor {:?}: {error}", tensor.name)))
        })
    }

    fn tensors(self, storage: &Storage) -> Result<BTreeMap<String, DynTensor>, MemoryError> {
        let over = |tensor: Planned| {
            let Planned { name, dtype, shape, at, len, .. } = tensor;
            // A storage for each, since their elements have different sizes. It fits: it was planned so.
            let part = storage.part(at, len);
            let part =
                part.ok_or_else(|| MemoryError::TooLarge { shape: shape.clone(), element: dtype.size() })?;
            Ok((name, DynTensor::from_storage(&part, dtype, &shape)?))
        };
        self.tensors.into_iter().map(over).collect()
    }
}

/// The header, and where the data begin. Nothing in it is taken on trust: every length is held against the file's.
fn read_header(file: &File) -> Result<(Metadata, u64), String> {
    let unreadable = |error: io::Error| error.to_string();
    let size = file.metadata().map_err(unreadable)?.len();
    let mut prefix = [0; PREFIX as usize];
    let room = size.checked_sub(PREFIX).ok_or_else(|| format!("{size} bytes are too few for a header"))?;
    file.read_exact_at(&mut prefix, 0).map_err(unreadable)?;
    let len = u64::from_le_bytes(prefix);
    if len > room.min(MAX_HEADER) {
        return Err(format!(
            "a header of {len} bytes is longer than the file's {size} bytes or than {MAX_HEADER}"
        ));
    }
    let mut header = vec![0; len as usize];
    file.read_exact_at(&mut header, PREFIX).map_err(unreadable)?;
    // Its shapes, types and offsets are checked against each other by this.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| format!("the header is damaged: {error}"))?;
    let (described, there) = (metadata.data_len() as u64, room - len);
    if described != there {
        return Err(format!("the header describes {described} bytes of data, but there are {there}"));
    }
    Ok((metadata, PREFIX + len))
}

fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::Bool => Dtype::BOOL,
        DType::U8 => Dtype::U8,
        DType::U16 => Dtype::U16,
        DType::U32 => Dtype::U32,
        DType::U64 => Dtype::U64,
        DType::I8 => Dtype::I8,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
    }
}

fn from_file(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::U8,
        Dtype::U16 => DType::U16,
        Dtype::U32 => DType::U32,
        Dtype::U64 => DType::U64,
        Dtype::I8 => DType::I8,
        Dtype::I16 => DType::I16,
        Dtype::I32 => DType::I32,
        Dtype::I64 => DType::I64,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F32 => DType::F32,
        Dtype::F64 => DType::F64,
        _ => return None,
    })
}
