//! Frozen tensors: nobody can write to them, and nobody who can is overlooked.

mod common;

use std::fs::OpenOptions;

use common::{await_post, board, descriptors, post, under_both_strategies};
use phalanx::{FrozenTensor, MemoryError, Options, SharingStrategy, Tensor, spawn, start_processes};

phalanx::auto_init!();

/// Elements of a tensor of floats that has a segment of its own.
const LARGE: usize = 100 << 10;

#[test]
fn frozen_tensor_is_a_slice_in_every_worker() {
    under_both_strategies(|| {
        for len in [100, LARGE] {
            let values: Vec<f32> = (0..len).map(|n| n as f32).collect();
            let frozen = Tensor::from_slice(&values, &[len]).unwrap().freeze().unwrap();
            let sum = |_, frozen: FrozenTensor<f32>| {
                anyhow::Ok((frozen.iter().map(|&x| f64::from(x)).sum::<f64>(), frozen.storage_id()))
            };
            let expected = values.iter().map(|&x| f64::from(x)).sum::<f64>();
            assert_eq!(spawn(sum, frozen.clone(), 3).unwrap(), vec![(expected, frozen.storage_id()); 3]);
        }
    });
}

#[test]
fn freezing_is_refused_while_a_worker_can_write_and_done_when_it_has_ended() {
    fn hold(_: usize, (tensor, board): (Tensor<f32>, Tensor<i64>)) -> anyhow::Result<()> {
        post(&board, 0, 1);
        await_post(&board, 1);
        Ok(tensor.set(0, 4.0)?)
    }
    under_both_strategies(|| {
        let (tensor, board) = (Tensor::<f32>::zeros(&[LARGE]).unwrap(), board(2));
        let context = start_processes(hold, (tensor.clone(), board.clone()), Options::new(1)).unwrap();
        await_post(&board, 0);
        let error = tensor.freeze().unwrap_err();
        assert!(
            error.to_string().contains("a worker that was given them and has not ended can still write"),
            "{error}"
        );
        // It is as it was.
        let tensor = error.into_inner();
        tensor.set(1, 5.0).unwrap();
        post(&board, 1, 1);
        context.join().unwrap();
        assert_eq!(tensor.freeze().unwrap()[..2], [4.0, 5.0]);
    });
}

#[test]
fn worker_may_freeze_what_it_returns() {
    under_both_strategies(|| {
        let make = |_, len: usize| -> anyhow::Result<FrozenTensor<f32>> {
            Ok(Tensor::from_slice(&vec![2.5; len], &[len])?.freeze()?)
        };
        for len in [10, LARGE] {
            assert_eq!(&spawn(make, len, 1).unwrap()[0][..], vec![2.5; len]);
        }
    });
}

#[test]
fn the_kernel_lets_nobody_write_to_frozen_memory() {
    under_both_strategies(|| {
        let frozen = Tensor::<f32>::zeros(&[LARGE]).unwrap().freeze().unwrap();
        let (number, _) =
            descriptors().into_iter().find(|(_, target)| target.contains("phalanx-storage")).unwrap();
        let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}")).unwrap();
        assert!(std::io::Write::write(&mut &file, &[1]).is_err());
        assert!(file.set_len(1).is_err());
        assert!(frozen.iter().all(|&x| x == 0.0));
    });
}

#[test]
fn tensor_that_is_not_frozen_does_not_arrive_as_one() {
    under_both_strategies(|| {
        #[derive(serde::Serialize)]
        struct Liar(Tensor<f32>);
        impl<'de> serde::Deserialize<'de> for Liar {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                FrozenTensor::<f32>::deserialize(deserializer)?;
                Err(serde::de::Error::custom("never"))
            }
        }
        let liar = Liar(Tensor::zeros(&[LARGE]).unwrap());
        let error = spawn(|_, _: Liar| anyhow::Ok(()), liar, 1).unwrap_err().to_string();
        assert!(error.contains("its memory is not sealed"), "{error}");
    });
}

#[test]
fn frozen_in_place_means_no_copy() {
    under_both_strategies(|| {
        let tensor = Tensor::<f32>::zeros(&[LARGE]).unwrap();
        let before = tensor.storage_id();
        let after = tensor.freeze().unwrap().storage_id();
        let in_place = phalanx::get_sharing_strategy() == SharingStrategy::FileDescriptor;
        assert_eq!(before == after, in_place);
        let tensor = Tensor::<f32>::zeros(&[LARGE]).unwrap();
        assert!(matches!(tensor.clone().freeze().unwrap_err().reason(), MemoryError::StillWritable { .. }));
    });
}

#[test]
fn freezing_is_refused_before_a_worker_has_even_mapped_it_and_for_every_kind_of_tensor() {
    under_both_strategies(|| {
        let large = || Tensor::<f32>::zeros(&[100, LARGE / 100]).unwrap();
        let small = Tensor::<f32>::zeros(&[4, 4]).unwrap();
        let scattered = large().transpose(0, 1).unwrap();
        for tensor in [scattered, large(), small] {
            let write = |_, tensor: Tensor<f32>| tensor.set(3, 7.0);
            let context = start_processes(write, tensor.clone(), Options::new(1)).unwrap();
            let tensor = tensor.freeze().unwrap_err().into_inner();
            context.join().unwrap();
            assert_eq!(tensor.freeze().unwrap()[3], 7.0);
        }
    });
}

#[test]
fn another_process_that_was_given_it_by_somebody_else_is_known_to_the_kernel() {
    // A worker gives it on to one of its own, and has it still when its own handles are gone.
    fn outer(_: usize, (tensor, board): (Tensor<f32>, Tensor<i64>)) -> anyhow::Result<String> {
        let hold = |_, (_tensor, board): (Tensor<f32>, Tensor<i64>)| -> anyhow::Result<()> {
            post(&board, 0, 1);
            await_post(&board, 1);
            Ok(())
        };
        let context = start_processes(hold, (tensor.clone(), board.clone()), Options::new(1))?;
        await_post(&board, 0);
        // As if it had come from elsewhere: another handle, to which nothing was lent.
        let error = through_a_worker(tensor)?.freeze().err().map(|error| error.to_string());
        post(&board, 1, 1);
        context.join()?;
        error.ok_or_else(|| anyhow::anyhow!("it was frozen"))
    }
    fn through_a_worker(tensor: Tensor<f32>) -> anyhow::Result<Tensor<f32>> {
        Ok(spawn(|_, tensor: Tensor<f32>| anyhow::Ok(tensor), tensor, 1)?.remove(0))
    }
    under_both_strategies(|| {
        let given = (Tensor::<f32>::zeros(&[LARGE]).unwrap(), board(2));
        let error = spawn(outer, given, 1).unwrap().remove(0);
        assert!(error.contains("another process can still write to them"), "{error}");
    });
}
