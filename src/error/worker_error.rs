//! What a worker's function may fail with.

/// An error that a worker's function may return: any `E` that becomes an [`anyhow::Error`], that is `anyhow::Error` itself and every
/// type that implements [`std::error::Error`], `Send` and `Sync` and borrows nothing.
///
/// It has no methods and is implemented for all of them: what it adds is one compiler message for those that are not among them.
/// `Box<dyn std::error::Error>` is the usual one, which implements none of the three. A function that returns it needs another
/// return type only, since `?` makes either of any error:
///
/// ```
/// # phalanx::auto_init!();
/// fn work(_rank: usize, text: String) -> anyhow::Result<i32> {
///     Ok(text.trim().parse::<i32>()?)
/// }
///
/// # fn main() -> anyhow::Result<()> {
/// assert_eq!(phalanx::spawn(work, " 7".to_owned(), 1)?, [7]);
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "a worker's function cannot return the error type `{Self}`",
    label = "this function's error type does not become an `anyhow::Error`",
    note = "let it return `anyhow::Result<R>`: `?` turns any error into an `anyhow::Error`. An error type of your own has to implement \
            `std::error::Error + Send + Sync + 'static`, which `Box<dyn std::error::Error>` does not"
)]
pub trait WorkerError: Into<anyhow::Error> {}

#[diagnostic::do_not_recommend]
impl<E: Into<anyhow::Error>> WorkerError for E {}
