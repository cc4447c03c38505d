//! Files of the safetensors format: what is loaded and saved is what the format's own crate reads and writes.

mod common;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::{descriptors, watched};
use half::{bf16, f16};
use phalanx::shm::safetensors::{load, load_frozen, save};
use phalanx::shm::{DType, Element};
use phalanx::{DynTensor, FrozenTensor, MemoryError, Tensor, spawn};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

phalanx::auto_init!();

/// A place for a file, which goes with its directory.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    (dir, path)
}

fn tensor<T: Element>(elements: &[T], shape: &[usize]) -> DynTensor {
    Tensor::from_slice(elements, shape).unwrap().into_dyn()
}

/// A tensor of each type.
fn one_of_each() -> BTreeMap<String, DynTensor> {
    let halves = [f16::from_f32(0.5), f16::NEG_INFINITY, f16::from_f32(-2.0)];
    let brains = [bf16::from_f32(0.5), bf16::MAX, bf16::from_f32(-2.0)];
    let all = [
        tensor(&[true, false, true], &[3]),
        tensor(&[1_u8, 2, u8::MAX], &[3]),
        tensor(&[1_u16, 2, u16::MAX], &[3]),
        tensor(&[1_u32, 2, u32::MAX], &[3]),
        tensor(&[1_u64, 2, u64::MAX], &[3]),
        tensor(&[-1_i8, 2, i8::MIN], &[3]),
        tensor(&[-1_i16, 2, i16::MIN], &[3]),
        tensor(&[-1_i32, 2, i32::MIN], &[3]),
        tensor(&[-1_i64, 2, i64::MIN], &[3]),
        tensor(&halves, &[3]),
        tensor(&brains, &[3]),
        tensor(&[0.5_f32, f32::MIN, -2.0], &[3]),
        tensor(&[0.5_f64, f64::MIN, -2.0], &[3]),
    ];
    all.into_iter().map(|tensor| (format!("of {}", tensor.dtype()), tensor)).collect()
}

/// What a tensor is, to be compared.
fn value(tensor: &DynTensor) -> (DType, Vec<usize>, Vec<u8>) {
    (tensor.dtype(), tensor.shape().to_vec(), tensor.to_bytes())
}

fn values(tensors: &BTreeMap<String, DynTensor>) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), value(tensor))).collect()
}

#[test]
fn all_types_come_back_and_lie_in_one_segment_each_at_a_cache_line() {
    watched(|| {
        let ((_dir, path), saved) = (place(), one_of_each());
        save(&path, &saved).unwrap();
        for loaded in [load(&path).unwrap(), load_frozen(&path).unwrap()] {
            assert_eq!(values(&loaded), values(&saved));
            let places = loaded.values().filter(|tensor| !tensor.is_empty()).map(|tensor| {
                let id = tensor.storage_id().to_string();
                let (segment, at) = id.split_once('+').unwrap();
                assert!(at.parse::<usize>().unwrap().is_multiple_of(64) && tensor.offset() == 0, "{id}");
                segment.to_owned()
            });
            assert_eq!(places.collect::<std::collections::BTreeSet<_>>().len(), 1);
        }
    });
}

#[test]
fn loaded_can_be_written_and_frozen_cannot() {
    watched(|| {
        let (_dir, path) = place();
        save(&path, &one_of_each()).unwrap();
        load(&path).unwrap()["of f32"].typed::<f32>().unwrap().set(0, 9.0).unwrap();
        let model = load_frozen(&path).unwrap();
        let weights = model["of f32"].typed::<f32>().unwrap();
        assert!(matches!(weights.set(0, 9.0), Err(MemoryError::ReadOnly)));
        let id = weights.storage_id();
        let weights = weights.freeze().unwrap();
        assert_eq!((&weights[..], weights.storage_id()), (&[0.5, f32::MIN, -2.0][..], id));
        let flags = model["of bool"].typed::<bool>().unwrap().freeze().unwrap();
        assert_eq!(flags.to_tensor().to_vec(), [true, false, true]);
    });
}

#[test]
fn one_of_a_file_is_frozen_by_a_copy_and_the_others_stay_as_they_are() {
    watched(|| {
        let (_dir, path) = place();
        // Larger than what is carved from segments, and the file's first has the place where its segment begins.
        let large = tensor(&vec![1.0_f32; 100_000], &[100_000]);
        save(&path, [("one", &large), ("other", &large)]).unwrap();
        let mut model = load(&path).unwrap();
        let (one, other) = (model.remove("one").unwrap(), model.remove("other").unwrap());
        let other = other.typed::<f32>().unwrap();
        let frozen = Tensor::<f32>::try_from(one).unwrap().freeze().unwrap();
        other.set(0, 2.0).unwrap();
        assert_eq!((frozen.len(), frozen[0], other.get(0).unwrap()), (100_000, 1.0, 2.0));
    });
}

#[test]
fn odd_layouts_are_saved_in_row_major_order() {
    watched(|| {
        let (_dir, path) = place();
        let matrix = tensor(&[1_i32, 2, 3, 4, 5, 6], &[2, 3]);
        let odd = BTreeMap::from([
            ("columns", matrix.transpose(0, 1).unwrap()),
            ("every second", matrix.slice(1, .., 2).unwrap()),
            ("last", matrix.select(1, 2).unwrap()),
            ("one", matrix.select(0, 1).unwrap().select(0, 0).unwrap()),
        ]);
        save(&path, &odd).unwrap();
        let loaded = load(&path).unwrap();
        let elements = |name: &str| loaded[name].typed::<i32>().unwrap().to_vec();
        assert_eq!(elements("columns"), [1, 4, 2, 5, 3, 6]);
        assert_eq!(elements("every second"), [1, 3, 4, 6]);
        assert_eq!(elements("last"), [3, 6]);
        assert_eq!((elements("one"), loaded["one"].shape()), (vec![4], &[][..]));
        assert!(loaded.values().all(DynTensor::is_contiguous));
    });
}

#[test]
fn tensors_without_elements_and_files_without_tensors() {
    watched(|| {
        let (_dir, path) = place();
        let empty = DynTensor::zeros(DType::F32, &[0, 7]).unwrap();
        let none: [(&str, &DynTensor); 0] = [];
        let few = [("empty", &empty), ("full", &tensor(&[7_u8], &[1]))];
        for tensors in [&none[..], &few[..1], &few[..]] {
            save(&path, tensors.iter().copied()).unwrap();
            for loaded in [load(&path).unwrap(), load_frozen(&path).unwrap()] {
                assert_eq!(loaded.len(), tensors.len());
                for (name, tensor) in tensors {
                    assert_eq!(value(&loaded[*name]), value(tensor));
                }
            }
            if let Some(empty) = load_frozen(&path).unwrap().get("empty") {
                assert!(empty.typed::<f32>().unwrap().freeze().unwrap().is_empty());
            }
        }
    });
}

#[test]
fn any_true_byte_of_a_bool_is_saved_as_one() {
    watched(|| {
        let (_dir, path) = place();
        let flags = DynTensor::zeros(DType::Bool, &[3]).unwrap();
        flags.write_bytes(&[2, 0, 255]).unwrap();
        save(&path, [("flags", &flags)]).unwrap();
        assert_eq!(load(&path).unwrap()["flags"].to_bytes(), [1, 0, 1]);
    });
}

#[test]
fn plain_crate_reads_what_is_saved() {
    watched(|| {
        let ((_dir, path), saved) = (place(), one_of_each());
        save(&path, &saved).unwrap();
        let file = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.len(), saved.len());
        for (name, tensor) in &saved {
            let view = read.tensor(name).unwrap();
            assert_eq!((view.shape(), view.data()), (tensor.shape(), &tensor.to_bytes()[..]));
        }
        assert_eq!(read.tensor("of bf16").unwrap().dtype(), Dtype::BF16);
        assert_eq!(read.tensor("of bool").unwrap().dtype(), Dtype::BOOL);
    });
}

fn view<'a>(dtype: Dtype, shape: &[usize], data: &'a [u8]) -> TensorView<'a> {
    TensorView::new(dtype, shape.to_vec(), data).unwrap()
}

#[test]
fn what_the_plain_crate_writes_is_loaded() {
    watched(|| {
        let (_dir, path) = place();
        let notes = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes: Vec<_> = (0..24).collect();
        let views = [
            ("odd", view(Dtype::U8, &[3], &bytes[..3])),
            ("words", view(Dtype::I64, &[3, 1], &bytes)),
            ("short", view(Dtype::I16, &[1], &bytes[..2])),
        ];
        serialize_to_file(views.clone(), Some(notes), &path).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.len(), 3);
        for (name, view) in views {
            assert_eq!((loaded[name].shape(), &loaded[name].to_bytes()[..]), (view.shape(), view.data()));
        }
        assert_eq!(loaded["words"].dtype(), DType::I64);
    });
}

#[test]
fn workers_get_the_weights_and_no_copy() {
    watched(|| {
        let (_dir, path) = place();
        let large = tensor(&(0..200_000).map(f64::from).collect::<Vec<_>>(), &[200_000]);
        save(&path, [("a", &large), ("b", &tensor(&[0.5_f64; 4], &[4]))]).unwrap();
        let model = load_frozen(&path).unwrap();
        let part = |name: &str| model[name].typed::<f64>().unwrap().freeze().unwrap();
        let sum = |_, (a, b): (FrozenTensor<f64>, FrozenTensor<f64>)| {
            let storages = descriptors().iter().filter(|(_, name)| name.contains("phalanx-storage")).count();
            anyhow::Ok((a.iter().chain(&*b).sum::<f64>(), storages))
        };
        let expected = (199_999.0 * 100_000.0 + 2.0, 1);
        assert_eq!(spawn(sum, (part("a"), part("b")), 2).unwrap(), [expected; 2]);
        // What is not frozen is shared both ways.
        let shared = load(&path).unwrap()["b"].typed::<f64>().unwrap();
        let write = |rank: usize, shared: Tensor<f64>| shared.set(rank, 9.0);
        spawn(write, shared.clone(), 2).unwrap();
        assert_eq!(shared.to_vec(), [9.0, 9.0, 0.5, 0.5]);
    });
}

/// What is said of a file.
fn refusal(path: &Path) -> String {
    let error = load(path).unwrap_err();
    assert!(matches!(error, MemoryError::File { .. }), "{error:?}");
    assert_eq!(load_frozen(path).unwrap_err().to_string(), error.to_string());
    let (beginning, reason) =
        error.to_string().split_once(".safetensors: ").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert!(beginning.starts_with("loading /"), "{beginning}");
    reason
}

/// What is said of a file with these bytes.
fn refusal_of(prefix: u64, header: &str, data: &[u8]) -> String {
    let (_dir, path) = place();
    std::fs::write(&path, [&prefix.to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
    refusal(&path)
}

#[test]
fn damaged_files_are_refused_with_a_reason() {
    watched(|| {
        let (_dir, path) = place();
        assert!(refusal(&path).contains("No such file"));
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert_eq!(refusal(&path), "3 bytes are too few for a header");
        for huge in [3, 100_000_001, u64::MAX] {
            let reason = refusal_of(huge, "{}", &[]);
            assert!(
                reason.starts_with(&format!("a header of {huge} bytes is longer than the file")),
                "{reason}"
            );
        }
        assert!(refusal_of(2, "{]", &[]).starts_with("the header is damaged"));
        assert_eq!(refusal_of(2, "{}", &[0; 5]), "the header describes 0 bytes of data, but there are 5");
        let header = |shape: &str, from: u64, to: u64| {
            let header = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#);
            refusal_of(header.len() as u64, &header, &[0; 8])
        };
        assert!(header("[2]", 4, 12).contains("invalid offset for tensor `a`"));
        assert!(header("[2]", 8, 0).contains("invalid offset for tensor `a`"));
        assert!(header("[3]", 0, 8).contains("invalid shape"));
        assert!(header("[3]", 0, 12).contains("12 bytes of data, but there are 8"));
        assert!(header("[-1]", 0, 8).contains("the header is damaged"));
        assert!(header("[4611686018427387904, 4]", 0, 8).contains("overflow"));
        assert!(header("[2]", 0, 1 << 60).contains("invalid shape"));
    });
}

#[test]
fn type_that_phalanx_does_not_have_is_named_with_its_tensor() {
    watched(|| {
        let (_dir, path) = place();
        serialize_to_file([("scale", view(Dtype::F8_E4M3, &[2], &[1, 2]))], None, &path).unwrap();
        assert_eq!(refusal(&path), "tensor \"scale\" is of type F8_E4M3, which phalanx does not have");
        serialize_to_file([("phase", view(Dtype::C64, &[1], &[0; 8]))], None, &path).unwrap();
        assert_eq!(refusal(&path), "tensor \"phase\" is of type C64, which phalanx does not have");
    });
}

#[test]
fn what_cannot_be_saved_leaves_the_old_file() {
    watched(|| {
        let (dir, path) = place();
        let one = tensor(&[1_u8], &[1]);
        save(&path, [("a", &one)]).unwrap();
        let refused =
            |tensors: &[(&str, &DynTensor)]| save(&path, tensors.iter().copied()).unwrap_err().to_string();
        assert!(refused(&[("a", &one), ("a", &one)]).ends_with("two tensors are called \"a\""));
        assert!(refused(&[("__metadata__", &one)]).ends_with("no tensor can be called \"__metadata__\""));
        assert_eq!(load(&path).unwrap().len(), 1);
        let error = save(dir.path().join("no/such/directory"), [("a", &one)]).unwrap_err().to_string();
        assert!(error.starts_with("saving /") && error.contains("No such file"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    });
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn saved_file_has_the_mode_of_the_one_before_and_a_new_one_that_of_any_new_file() {
    watched(|| {
        let (dir, path) = place();
        let one = tensor(&[1_u8], &[1]);
        save(&path, [("a", &one)]).unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "").unwrap();
        assert_eq!(mode(&path), mode(&plain));
        for kept in [0o640, 0o604, 0o600] {
            std::fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
            save(&path, [("a", &one)]).unwrap();
            assert_eq!(mode(&path), kept);
        }
    });
}

#[test]
fn symbolic_link_stays_one_and_what_it_leads_to_is_replaced() {
    watched(|| {
        let (dir, _) = place();
        let in_dir = |name: &str| dir.path().join(name);
        let one = tensor(&[1_u8], &[1]);
        // Of a file that is there, of one that is not yet, and of a link.
        std::fs::create_dir(in_dir("runs")).unwrap();
        save(in_dir("runs/old"), [("old", &one)]).unwrap();
        symlink("runs/old", in_dir("latest")).unwrap();
        symlink("runs/new", in_dir("next")).unwrap();
        symlink("latest", in_dir("link")).unwrap();
        for (link, end, name) in
            [("latest", "runs/old", "a"), ("next", "runs/new", "b"), ("link", "runs/old", "c")]
        {
            save(in_dir(link), [(name, &one)]).unwrap();
            assert!(in_dir(link).is_symlink() && !in_dir(end).is_symlink(), "{link}");
            assert!(load(in_dir(end)).unwrap().contains_key(name), "{link}");
        }
        assert_eq!(std::fs::read_dir(in_dir("runs")).unwrap().count(), 2);
    });
}

#[test]
fn pipe_is_written_to() {
    watched(|| {
        let (_dir, path) = place();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reading = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read(path).unwrap()
        });
        save(&path, [("a", &tensor(&[7_u8], &[1]))]).unwrap();
        let bytes = reading.join().unwrap();
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("a").unwrap().data(), [7]);
        assert!(std::fs::metadata(&path).unwrap().file_type().is_fifo());
    });
}

/// A file that is right.
fn sound() -> Vec<u8> {
    let views = [
        ("a", view(Dtype::F32, &[2, 2], &[7; 16])),
        ("b", view(Dtype::U8, &[5], &[1, 2, 3, 4, 5])),
        ("c", view(Dtype::I64, &[0, 3], &[])),
    ];
    safetensors::serialize(views, None).unwrap()
}

/// Loads what was damaged, beside the plain crate.
fn load_damaged(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (_dir, path) = place();
    std::fs::write(&path, bytes).unwrap();
    let known = SafeTensors::deserialize(bytes);
    for loaded in [load(&path), load_frozen(&path)] {
        match (&known, loaded) {
            (Ok(known), Ok(loaded)) => {
                prop_assert_eq!(known.len(), loaded.len());
                for (name, view) in known.iter() {
                    prop_assert_eq!(loaded[name].shape(), view.shape());
                    prop_assert_eq!(&loaded[name].to_bytes()[..], view.data());
                }
            }
            // A change may have made a type that phalanx does not have.
            (_, Err(error)) => {
                let told = matches!(error, MemoryError::File { .. } | MemoryError::TooLarge { .. });
                prop_assert!(told, "{}", error);
            }
            (Err(error), Ok(_)) => prop_assert!(false, "loaded in spite of: {}", error),
        }
    }
    Ok(())
}

#[test]
fn damaged_bytes_are_refused_or_loaded_as_the_plain_crate_does() {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::of(any::<prop::sample::Index>());
    watched(|| {
        proptest!(|(changes in changes, cut in cut)| {
            let mut bytes = sound();
            changes.iter().for_each(|(place, byte)| *place.get_mut(&mut bytes) = *byte);
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            load_damaged(&bytes)?;
        });
    });
}
