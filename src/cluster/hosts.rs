//! Pure: lists of hosts as Slurm writes them, `node[01-04,7],other`.

use super::error::{ClusterError, Result};

/// More hosts than any job has: a list of more is refused before it takes memory.
const MOST_HOSTS: usize = 1 << 16;
/// More bytes than a DNS name has.
const LONGEST_NAME: usize = 255;
/// How much of a wrong list stands in the error.
const SHOWN: usize = 100;

/// The names in a list of hosts, in its order. Leading zeros stay, and several groups in one name multiply, the last one fastest, as
/// with `scontrol show hostnames`. An empty list has no names.
///
/// ```
/// use phalanx::cluster::expand_hosts;
///
/// assert_eq!(expand_hosts("node[08-10,7],other")?, ["node08", "node09", "node10", "node7", "other"]);
/// assert_eq!(expand_hosts("b[1-2]-x[0-1]")?, ["b1-x0", "b1-x1", "b2-x0", "b2-x1"]);
/// # Ok::<(), phalanx::cluster::ClusterError>(())
/// ```
///
/// # Errors
/// [`ClusterError::Hosts`] for a list that is not so written, or that has more than 65,536 hosts or a name of more than 255 bytes.
pub fn expand_hosts(list: &str) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    if list.is_empty() {
        return Ok(hosts);
    }
    let mut at = 0;
    for item in items(list) {
        let refuse = |(what, within): (&'static str, usize)| ClusterError::Hosts {
            list: list.chars().take(SHOWN).collect(),
            what,
            at: at + within,
        };
        let names = expand_item(item, MOST_HOSTS - hosts.len()).map_err(refuse)?;
        hosts.extend(names);
        at += item.len() + 1;
    }
    Ok(hosts)
}

/// What is wrong with an item, and at which of its bytes.
type Wrong = (&'static str, usize);

const TOO_MANY: &str = "more than 65,536 hosts";
const TOO_LONG: &str = "a name of more than 255 bytes";

/// The parts of a list between the commas outside of brackets.
fn items(list: &str) -> impl Iterator<Item = &str> {
    let mut is_inside = false;
    list.split(move |c| {
        is_inside = if is_inside { c != ']' } else { c == '[' };
        c == ',' && !is_inside
    })
}

/// The names of one item, at most `most`.
fn expand_item(item: &str, most: usize) -> std::result::Result<Vec<String>, Wrong> {
    let mut names = vec![String::new()];
    let mut at = 0;
    while let Some(open) = item[at..].find(['[', ']']).map(|found| at + found) {
        let close = item[open..].find(']').map(|found| open + found);
        let close = close.filter(|&close| close > open).ok_or(("a bracket without its other one", open))?;
        let numbers =
            numbers(&item[open + 1..close], most).map_err(|(what, within)| (what, open + 1 + within))?;
        if names.len().saturating_mul(numbers.len()) > most {
            return Err((TOO_MANY, open));
        }
        let plain = &item[at..open];
        if names[0].len() + plain.len() > LONGEST_NAME {
            return Err((TOO_LONG, at));
        }
        let with = |name: &String| numbers.iter().map(|n| format!("{name}{plain}{n}")).collect::<Vec<_>>();
        names = names.iter().flat_map(with).collect();
        at = close + 1;
    }
    if names[0].len() + item.len() - at > LONGEST_NAME {
        return Err((TOO_LONG, at));
    }
    names.iter_mut().for_each(|name| name.push_str(&item[at..]));
    match item.len() {
        0 => Err(("an empty name", 0)),
        _ if names.len() > most => Err((TOO_MANY, 0)),
        _ => Ok(names),
    }
}

/// The numbers of a group, `01-04,7`, as text.
fn numbers(group: &str, most: usize) -> std::result::Result<Vec<String>, Wrong> {
    let mut found = Vec::new();
    let mut at = 0;
    for range in group.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Some(low), Some(high)) = (number(first), number(last)) else {
            return Err(("no number of at most 18 digits", at));
        };
        if high < low {
            return Err(("a range that ends before it begins", at));
        }
        if high - low >= (most - found.len()) as u64 {
            return Err((TOO_MANY, at));
        }
        let width = first.len();
        found.extend((low..=high).map(|n| format!("{n:0width$}")));
        at += range.len() + 1;
    }
    Ok(found)
}

/// A number of digits alone.
fn number(text: &str) -> Option<u64> {
    let is_number = (1..=18).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// The shortest list that [`expand_hosts`] turns into these names, in this order, with one group a name. Names that follow one another
/// and differ by the number at their end share a group. The names have no brackets and commas.
///
/// ```
/// use phalanx::cluster::compress_hosts;
///
/// assert_eq!(compress_hosts(&["n08", "n09", "n10", "n7", "login"]), "n[08-10,7],login");
/// ```
pub fn compress_hosts<T: AsRef<str>>(hosts: &[T]) -> String {
    let mut items: Vec<String> = Vec::new();
    let mut rest = hosts;
    while let Some(first) = rest.first() {
        let Some((prefix, _)) = split(first.as_ref()) else {
            items.push(first.as_ref().to_owned());
            rest = &rest[1..];
            continue;
        };
        let digits =
            |host: &T| split(host.as_ref()).filter(|(other, _)| *other == prefix).map(|(_, d)| d.to_owned());
        let run: Vec<_> = rest.iter().map_while(digits).collect();
        rest = &rest[run.len()..];
        items.push(match &*run {
            [only] => format!("{prefix}{only}"),
            _ => format!("{prefix}[{}]", ranges(&run)),
        });
    }
    items.join(",")
}

/// A name before its last digits, and these.
fn split(host: &str) -> Option<(&str, &str)> {
    let prefix = host.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = &host[prefix.len()..];
    number(digits).map(|_| (prefix, digits))
}

/// Numbers as ranges, `01-04,7`. Each is one that [`number`] reads.
fn ranges(numbers: &[String]) -> String {
    let mut parts = Vec::new();
    let mut rest = numbers;
    while let Some(first) = rest.first() {
        let (width, low) = (first.len(), number(first).unwrap_or_default());
        let follows = |(n, text): &(u64, &String)| format!("{:0width$}", low + n) == **text;
        let len = (0..).zip(rest).take_while(follows).count().max(1);
        parts.push(if len == 1 { first.clone() } else { format!("{first}-{}", rest[len - 1]) });
        rest = &rest[len..];
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_slurms_are_expanded_as_scontrol_does() {
        // `scontrol show hostnames` of Slurm 22.05.8.
        let expanded = expand_hosts("a[01-03,7],b-[1-2]-x[0-1],c9").unwrap();
        assert_eq!(expanded, ["a01", "a02", "a03", "a7", "b-1-x0", "b-1-x1", "b-2-x0", "b-2-x1", "c9"]);
        assert_eq!(expand_hosts("").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_place() {
        let refused = |list: &str| expand_hosts(list).unwrap_err().to_string();
        for (list, what) in [
            ("a,,b", "an empty name at byte 2"),
            ("a,b[1-2", "a bracket without its other one at byte 3"),
            ("a]", "a bracket without its other one at byte 1"),
            ("a[1,x]", "no number of at most 18 digits at byte 4"),
            ("a[[1]]", "no number of at most 18 digits at byte 2"),
            ("a[]", "no number of at most 18 digits at byte 2"),
            ("a[4-2]", "a range that ends before it begins at byte 2"),
            ("a[0-999999999999999999]", "more than 65,536 hosts at byte 2"),
            ("a[0-9999][0-9999]", "more than 65,536 hosts at byte 9"),
            ("a[1-65536],b", "more than 65,536 hosts at byte 11"),
        ] {
            assert!(refused(list).contains(what), "{list}: {}", refused(list));
        }
        assert_eq!(expand_hosts("a[1-65536]").unwrap().len(), 65_536);
        let long = "a".repeat(255);
        assert!(expand_hosts(&long).is_ok());
        assert!(refused(&format!("{long}a[1-2]")).contains("more than 255 bytes at byte 0"));
        assert!(refused(&format!("[1-2]{long}")).contains("more than 255 bytes at byte 5"));
    }

    proptest! {
        #[test]
        fn expanding_undoes_compressing(hosts in prop::collection::vec("[a-b]{0,2}-?[0-9]{1,3}|[a-c]{1,3}|x[0-9]{17,20}", 0..40)) {
            prop_assert_eq!(expand_hosts(&compress_hosts(&hosts)).unwrap(), hosts);
        }

        #[test]
        fn runs_with_zeros_are_compressed_and_expanded(low in 0_u64..1_200, len in 2_usize..300, width in 0_usize..6) {
            let hosts: Vec<_> = (low..).take(len).map(|n| format!("n{n:0width$}")).collect();
            let list = compress_hosts(&hosts);
            prop_assert!(list.len() < 30, "{}", list);
            prop_assert_eq!(expand_hosts(&list).unwrap(), hosts);
        }

        #[test]
        fn no_text_panics_or_grows_without_bound(list in "[ab0-9,\\[\\]\\-é]{0,60}") {
            if let Ok(hosts) = expand_hosts(&list) {
                prop_assert!(hosts.len() <= MOST_HOSTS);
                prop_assert!(hosts.iter().all(|host| !host.is_empty()));
            }
        }
    }
}
