//! What the workers of a pool print, carried by its process, also of those that take the places of others.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is what is tested")]

mod common;
#[path = "common/console.rs"]
mod shown;

use std::fs;

use common::{by, kill_self, watched};
use phalanx::pool::Pool;
use phalanx::{OutputFile, Prefix, RankOptions, StartMethod};
use shown::console;

phalanx::auto_init!();

fn speak(how: String) -> anyhow::Result<()> {
    println!("out {how}");
    eprintln!("says {how}");
    if how == "dies" { kill_self() } else { Ok(()) }
}

#[test]
fn workers_of_a_pool_and_those_that_take_their_places_have_prefixes_and_tails() {
    let test = |_: usize, method: StartMethod| {
        let workers =
            by(method, 1).name("job").prefix("${role_name}/${rank}> ".parse::<Prefix>()?).stderr_tail(2);
        let pool = Pool::options(workers).build()?;
        for last in ["first", "next"] {
            pool.submit(speak, last.to_owned())?.join()?;
            let failed = pool.submit(speak, "dies".to_owned())?.join().unwrap_err();
            let said = [format!("says {last}"), "says dies".to_owned()];
            assert_eq!(failed.outcome().unwrap().stderr_tail(), said);
            let text = failed.to_string();
            assert!(text.contains(&format!("\nthe end of its stderr:\n  {}", said.join("\n  "))), "{text}");
        }
        pool.join()?;
        Ok(())
    };
    let look = |[stdout, stderr]: [String; 2]| {
        let all =
            |before| ["first", "dies", "next", "dies"].map(|how| format!("job/0> {before} {how}\n")).concat();
        assert_eq!((stdout, stderr), (all("out"), all("says")));
    };
    watched(|| {
        [StartMethod::Spawn, StartMethod::ForkServer]
            .into_iter()
            .for_each(|method| look(console(test, method)))
    });
}

#[test]
fn stderr_of_a_pools_worker_goes_on_in_the_file_of_its_number() {
    let test = |_: usize, method: StartMethod| {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("stderr");
        let own = |_| RankOptions::new().stderr(OutputFile::truncate(dir.path().join("stderr")));
        let pool = Pool::options(by(method, 1).rank_options(own).stderr_tail(1)).build()?;
        let failed = pool.submit(speak, "dies".to_owned())?.join().unwrap_err();
        assert_eq!(failed.outcome().unwrap().stderr_tail(), ["says dies"]);
        pool.submit(speak, "next".to_owned())?.join()?;
        pool.join()?;
        assert_eq!(fs::read_to_string(path)?, "says dies\nsays next\n");
        Ok(())
    };
    watched(|| assert_eq!(console(test, StartMethod::Spawn)[1], ""));
}

fn flood(_: ()) -> anyhow::Result<()> {
    let text: String = (0..5000).map(|line| format!("line {line} of many\n")).collect();
    eprint!("{text}last words");
    kill_self()
}

#[test]
fn death_is_told_when_all_that_the_worker_has_printed_is_known() {
    let test = |_: usize, method: StartMethod| {
        let pool = Pool::options(by(method, 1).stderr_tail(1)).build()?;
        let failed = pool.submit(flood, ())?.join().unwrap_err();
        assert_eq!(failed.outcome().unwrap().stderr_tail(), ["last words"]);
        pool.join()?;
        Ok(())
    };
    watched(|| assert_eq!(console(test, StartMethod::Spawn)[1].lines().count(), 5001));
}
