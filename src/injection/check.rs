//! A plan against the points of this executable, and the ranks of a context.

use super::action::Action;
use super::error::PlanError;
use super::plan::{Plan, Rule};
use super::text;
use crate::point::{self, Admits, Point};

impl Plan {
    /// Whether the points exist and admit what the rules do.
    ///
    /// A prefix stands for those of its points that admit it.
    ///
    /// # Errors
    /// The first rule that would never happen.
    pub(crate) fn check_points(&self) -> Result<(), PlanError> {
        self.rules.iter().try_for_each(|rule| check_points(rule, point::all()))
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

fn check_points(rule: &Rule, points: &[Point]) -> Result<(), PlanError> {
    let mut named = points.iter().filter(|point| rule.is_at(point.name())).peekable();
    let Some(first) = named.peek().copied() else {
        let nearest = text::nearest(&rule.site, points.iter().map(Point::name)).map(str::to_owned);
        return Err(PlanError::UnknownPoint { site: rule.site.clone(), nearest });
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
        let check = |text: &str| check_points(&text.parse::<Plan>().unwrap().rules[0], &points);
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
}
