//! Prefix: what stands before each line on the console.

/// A template for what stands before each line of a worker on the console: torchrun's `--log-line-prefix-template`.
///
/// | in the template | stands for |
/// |---|---|
/// | `${role_name}` | the job's [`role`](crate::launch::Launch::role); for workers that run a function, its [`name`](crate::Options::name) |
/// | `${rank}`, `${local_rank}` | the worker's rank on this node |
/// | `${hostname}` | this machine's name, up to its first dot |
///
/// [`Launch::prefix`](crate::launch::Launch::prefix) and [`Options::prefix`](crate::Options::prefix) take it. Parsing a template with
/// another name in `${}` fails. Log files have no prefix.
///
/// ```
/// use phalanx::Prefix;
///
/// let prefix: Prefix = "[${hostname} ${rank}] ".parse()?;
/// assert!("${host}".parse::<Prefix>().is_err());
/// # let _ = prefix;
/// # Ok::<(), phalanx::PrefixError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// What a template may have in `${}`.
const NAMES: [&str; 4] = ["role_name", "rank", "local_rank", "hostname"];

impl Prefix {
    /// No prefix: lines are shown as the workers write them.
    #[must_use]
    pub fn none() -> Self {
        Self(String::new())
    }

    /// The template.
    pub(crate) fn template(&self) -> &str {
        &self.0
    }

    /// The prefix of a rank.
    pub(crate) fn of(&self, role: &str, rank: usize) -> Vec<u8> {
        let rank = rank.to_string();
        // Asked for only where it is wanted: that reads a file.
        let host = if self.0.contains("${hostname}") { hostname() } else { String::new() };
        let values = [role, &rank, &rank, &host];
        let replace =
            |text: String, (name, value): (&str, &str)| text.replace(&format!("${{{name}}}"), value);
        NAMES.into_iter().zip(values).fold(self.0.clone(), replace).into_bytes()
    }
}

impl Default for Prefix {
    /// torchrun's: `[default0]:` for rank 0 of the role `default`.
    fn default() -> Self {
        Self("[${role_name}${rank}]:".to_owned())
    }
}

impl std::str::FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let mut names = text.split("${").skip(1).map(|rest| rest.split('}').next().unwrap_or_default());
        match names.find(|name| !NAMES.contains(name)) {
            Some(name) => Err(PrefixError { name: name.to_owned(), template: text.to_owned() }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// A [`Prefix`] has a name in it that stands for nothing.
///
/// ```
/// let error = "${host}: ".parse::<phalanx::Prefix>().unwrap_err();
/// let text = "${host} in the prefix \"${host}: \" stands for nothing; \
///             there are ${role_name}, ${rank}, ${local_rank}, ${hostname}";
/// assert_eq!(error.to_string(), text);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}; {}", self.what(), Self::hint())]
pub struct PrefixError {
    name: String,
    template: String,
}

impl PrefixError {
    /// What is wrong, with the template.
    pub(crate) fn what(&self) -> String {
        format!("${{{}}} in the prefix {:?} stands for nothing", self.name, self.template)
    }

    /// What to do about it.
    pub(crate) fn hint() -> String {
        format!("there are {}", NAMES.map(|name| format!("${{{name}}}")).join(", "))
    }
}

/// The name of this machine, up to its first dot.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().split('.').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_for_the_workers_own() {
        assert_eq!(Prefix::default().of("trainer", 12), b"[trainer12]:");
        let all: Prefix = "${hostname}/${role_name} ${rank} ${local_rank}".parse().unwrap();
        assert_eq!(all.of("r", 3), format!("{}/r 3 3", hostname()).into_bytes());
        assert!(Prefix::none().of("r", 3).is_empty());
    }
}
