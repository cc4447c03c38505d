//! A plan against where it is to be in force: the points of this executable and the ranks of a context, or the workers of a launcher.

use super::action::Action;
use super::error::PlanError;
use super::plan::{Plan, Rule};
use super::set::Ranks;
use super::site::Site;
use super::text;
use crate::point::{self, Admits, Point};

impl Plan {
    /// Whether workers that run a function of this executable can do what the rules say.
    ///
    /// A prefix stands for those of its points that admit it.
    ///
    /// # Errors
    /// The first rule that would never happen.
    pub(crate) fn check_for_functions(&self) -> Result<(), PlanError> {
        self.rules.iter().try_for_each(|rule| match &rule.site {
            Site::Point(name) => check_points(rule, name, point::all()),
            _ => Ok(()),
        })?;
        never(self, in_functions)
    }

    /// Whether a launcher of `nproc` workers, which run any program, can do to them what the rules say.
    ///
    /// # Errors
    /// The first rule that would never happen.
    pub(crate) fn check_for_programs(&self, nproc: usize) -> Result<(), PlanError> {
        never(self, in_programs)?;
        self.check_ranks(nproc)
    }

    /// Whether the ranks exist.
    ///
    /// # Errors
    /// The first rule that names one that does not.
    pub(crate) fn check_ranks(&self, nprocs: usize) -> Result<(), PlanError> {
        let highest =
            |rule: &Rule| Some((rule.ranks.highest().filter(|&rank| rank >= nprocs)?, rule.to_string()));
        match self.rules.iter().find_map(highest) {
            Some((rank, rule)) => Err(PlanError::UnknownRank { rule, rank, nprocs }),
            None => Ok(()),
        }
    }
}

/// The first rule that would never happen.
fn never(plan: &Plan, why: fn(&Rule) -> Option<&'static str>) -> Result<(), PlanError> {
    let never = |rule: &Rule| Some(PlanError::Never { rule: rule.to_string(), why: why(rule)? });
    plan.rules.iter().find_map(never).map_or(Ok(()), Err)
}

/// Why workers that run a function of this executable would never do it.
fn in_functions(rule: &Rule) -> Option<&'static str> {
    // The stack of the thread that does it is not the program's.
    let is_death = rule.action.is_death() && rule.action != Action::Overflow;
    let is_done_from_aside = is_death || rule.action.is_done_by_others();
    match rule.site {
        _ if rule.is_for_launcher => Some("no plan is in force in this program, which is the launcher"),
        _ if !rule.is_in_attempt(0) => Some("there is one attempt, 0"),
        Site::Line(_) => Some("lines are read by `phalanx run` and launch::Launch alone"),
        Site::Time(_) | Site::File(_) if !is_done_from_aside => {
            Some("at a time or a file a worker can end, be stopped or limited; the rest wants a point")
        }
        Site::Time(_) | Site::File(_) if rule.time.is_some() => {
            Some("a worker that has stopped itself cannot continue itself")
        }
        Site::Point(_) => None,
        Site::Time(_) => from_aside(rule, true),
        _ => from_aside(rule, false),
    }
}

/// Why a launcher would never do it to workers that run any program.
fn in_programs(rule: &Rule) -> Option<&'static str> {
    match &rule.site {
        Site::Point(name) if name != "start" => {
            Some("a launcher knows no points of a program: there are start, time=, line= and file=")
        }
        _ if !rule.action.is_done_by_others() => Some(
            "a launcher can send signals and set limits: kill, term, int, abort, segv, bus, stop and limit=",
        ),
        _ if rule.is_for_launcher && rule.ranks != Ranks::Any => Some("the launcher has no rank"),
        _ if rule.is_for_launcher && rule.action == Action::Stop => {
            Some("a launcher that has stopped itself cannot continue itself")
        }
        Site::Point(_) | Site::Time(_) => from_aside(rule, true),
        _ => from_aside(rule, false),
    }
}

/// Why it would never happen where no point is met: at something that comes once, or that may come again.
fn from_aside(rule: &Rule, comes_once: bool) -> Option<&'static str> {
    if rule.one_in.is_some() {
        return Some("hits of points alone are drawn by one-in=");
    }
    (comes_once && !rule.hits().has(1)).then_some("its site comes once: its hit is 1")
}

fn check_points(rule: &Rule, name: &str, points: &[Point]) -> Result<(), PlanError> {
    let mut named = points.iter().filter(|point| rule.is_at(point.name())).peekable();
    let Some(first) = named.peek().copied() else {
        let nearest = text::nearest(name, points.iter().map(Point::name)).map(str::to_owned);
        return Err(PlanError::UnknownPoint { site: name.to_owned(), nearest });
    };
    if named.any(|point| admits(point, rule.action)) {
        return Ok(());
    }
    let (file, line) = first.location();
    Err(PlanError::NotAdmitted {
        rule: rule.to_string(),
        point: first.name(),
        location: format!("{file}:{line}"),
        admitted: match first.admits() {
            Admits::Deaths => "deaths and delays, but neither panics nor errors",
            _ => {
                "deaths, delays and panics, but no errors: point!(name, |injected| return Err(injected.into())) does"
            }
        },
    })
}

/// Whether a point admits an action.
pub(crate) fn admits(point: &Point, action: Action) -> bool {
    point.admits() >= action.needs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_would_never_happen_are_refused() {
        let points = [
            Point::new("a.death", "src/a.rs", 3, Admits::Deaths),
            Point::new("a.panic", "src/a.rs", 4, Admits::Panics),
            Point::new("b.error", "src/b.rs", 5, Admits::Errors),
        ];
        let check = |text: &str| {
            let rule = &text.parse::<Plan>().unwrap().rules[0];
            check_points(rule, &rule.site.to_string(), &points)
        };
        for fine in ["kill@a.death", "panic@a.panic", "error@b.error", "panic@a.", "stop@b.error"] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        for (text, expected) in [
            ("kill@a.deaht", "no fault point `a.deaht`: did you mean `a.death`?"),
            ("kill@optimizer.step", "phalanx::fault::points() lists"),
            (
                "panic@a.death",
                "`a.death` (src/a.rs:3) admits deaths and delays, but neither panics nor errors",
            ),
            ("error@a.panic", "`a.panic` (src/a.rs:4) admits deaths, delays and panics, but no errors"),
            ("error@a.", "`a.death`"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let plan: Plan = "kill@a.death:rank=1+4".parse().unwrap();
        assert!(plan.check_ranks(5).is_ok());
        let error = plan.check_ranks(4).unwrap_err().to_string();
        assert_eq!(error, "`kill@a.death:rank=1+4` names rank 4, but there are 4 (0 to 3)");
    }

    #[test]
    fn what_a_place_does_not_know_is_refused_there() {
        let functions = |text: &str| text.parse::<Plan>().unwrap().check_for_functions();
        let programs = |text: &str| text.parse::<Plan>().unwrap().check_for_programs(2);
        for fine in ["kill@time=1s:attempt=all", "exit=3@file=a:hit=2", "stop@time=1s", "kill@start"] {
            assert_eq!(functions(fine), Ok(()), "{fine}");
        }
        for fine in [
            "kill@start",
            "stop@time=1s:for=1s",
            "segv@line=a:hit=2..",
            "term@file=a:role=launcher",
            "int@time=0s:attempt=3",
        ] {
            assert_eq!(programs(fine), Ok(()), "{fine}");
        }
        for (text, expected) in [
            ("kill@time=1s:attempt=1", "there is one attempt"),
            ("kill@line=a", "phalanx run"),
            ("panic@time=1s", "wants a point"),
            ("stop@time=1s:for=1s", "continue itself"),
            ("kill@time=1s:hit=2", "comes once"),
            ("kill@file=a:one-in=2", "one-in"),
            ("kill@time=1s:role=launcher", "no plan is in force in this program, which is the launcher"),
        ] {
            let error = functions(text).unwrap_err().to_string();
            assert!(error.contains("would never happen: ") && error.contains(expected), "{text}: {error}");
        }
        for (text, expected) in [
            ("kill@train.step", "no points of a program"),
            ("exit=3@time=1s", "can send signals"),
            ("kill@start:hit=2", "comes once"),
            ("kill@time=1s:role=launcher:rank=0", "has no rank"),
            ("stop@time=1s:role=launcher", "continue itself"),
            ("kill@time=1s:rank=2", "names rank 2, but there are 2"),
        ] {
            let error = programs(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
