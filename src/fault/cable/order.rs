//! What can be done to a cable.

/// One of the two sides of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The side that has connected to [`Cable::address`](crate::fault::Cable::address).
    Client,
    /// The server, to which the cable leads.
    Server,
}

/// What is asked of the thread.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Pull,
    Plug,
    /// In bytes a second.
    Slow(u64),
    CutAfter(End, u64),
    Reset,
    HalfOpen(End),
}
