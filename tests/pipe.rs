//! What travels beside values, and the pipes that values travel through.

mod common;

use std::fs::File;
use std::io::{Read, Seek, Write};

use common::{launched, watched};
use phalanx::{Descriptor, Options, StartMethod, spawn, start_processes};

phalanx::auto_init!();

/// Runs a test once for each start method, in a process with one thread, which may fork.
fn by_each_method(test: impl Fn(StartMethod)) -> anyhow::Result<()> {
    for method in [StartMethod::Fork, StartMethod::Spawn, StartMethod::ForkServer] {
        // The fork server stays.
        start_processes(|_, ()| anyhow::Ok(()), (), by(method, 1))?.join()?;
        watched(|| test(method));
    }
    Ok(())
}

fn by(method: StartMethod, nprocs: usize) -> Options {
    Options::new(nprocs).start_method(method)
}

/// An open file with this text, to be read from its beginning.
fn file_of(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn text_of(file: Descriptor) -> anyhow::Result<String> {
    let mut text = String::new();
    File::from(file.into_owned()?).read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn descriptors_travel_in_arguments_and_results_by_each_start_method() {
    fn work(rank: usize, given: Vec<Descriptor>) -> anyhow::Result<(String, Descriptor)> {
        let text = text_of(given[rank].clone())?;
        let back = file_of(&format!("{text} of rank {rank}"));
        Ok((text, back.into()))
    }
    launched(|_, ()| {
        by_each_method(|method| {
            let given = vec![Descriptor::from(file_of("a")), Descriptor::from(file_of("b"))];
            let results = start_processes(work, given.clone(), by(method, 2)).unwrap().join().unwrap();
            let texts = results.into_iter().map(|(text, back)| (text, text_of(back).unwrap()));
            assert_eq!(
                texts.collect::<Vec<_>>(),
                [("a".to_owned(), "a of rank 0".to_owned()), ("b".to_owned(), "b of rank 1".to_owned())]
            );
            // The sender keeps its own: the same open file, which is read to its end.
            let mut kept = File::from(given[0].clone().into_owned().unwrap());
            assert_eq!(
                (kept.stream_position().unwrap(), text_of(given[0].clone()).unwrap()),
                (1, String::new())
            );
        })
    });
}

#[test]
fn hundreds_of_descriptors_arrive_each_as_itself() {
    const COUNT: usize = 300;
    fn work(_: usize, given: Vec<Descriptor>) -> anyhow::Result<Vec<Descriptor>> {
        Ok(given)
    }
    watched(|| {
        let given = (0..COUNT).map(|number| Descriptor::from(file_of(&number.to_string())));
        let back = spawn(work, given.collect(), 1).unwrap().remove(0);
        let texts: Vec<_> = back.into_iter().map(|file| text_of(file).unwrap()).collect();
        assert_eq!(texts, (0..COUNT).map(|number| number.to_string()).collect::<Vec<_>>());
    });
}

#[test]
fn descriptor_of_a_result_asked_for_again_is_the_same() {
    watched(|| {
        let make = |_, ()| anyhow::Ok(Descriptor::from(file_of("once")));
        let mut context = start_processes(make, (), Options::new(1)).unwrap();
        common::poll_join(&mut context).unwrap();
        let texts = [(); 2].map(|()| text_of(context.result(0).unwrap().unwrap()).unwrap());
        assert_eq!(texts, ["once", ""]);
    });
}
