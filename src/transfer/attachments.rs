//! Attachments: what travels beside the bytes of a value, whoever has put it there and whoever sends it.

use std::fmt;
use std::sync::Arc;

use super::grant::Grant;
use crate::memory::descriptor::Descriptor;
use crate::memory::segment::Segment;
use crate::memory::storage::Loan;

/// The sender's hold on a thing in a message that only one process can have, such as a shard. Dropping it without
/// [`keep`](Self::keep) means that the message was not delivered: the sender can use the thing again.
pub(crate) trait Claim: fmt::Debug + Send {
    /// The kind of thing, for an error's text.
    fn noun(&self) -> &'static str;

    /// The message was delivered: the thing is gone from the sender for good.
    fn keep(self: Box<Self>);
}

/// What travels beside the bytes of a value.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) grants: Vec<Grant>,
    /// The descriptors of the value. One that the value has clones of is in it once.
    pub(crate) descriptors: Vec<Descriptor>,
    /// The things that only one process can have: they come back unless they are [delivered](Self::deliver).
    pub(super) claims: Vec<Box<dyn Claim>>,
    /// The storages to which the receivers may write as long as they live.
    pub(super) loans: Vec<Loan>,
}

impl Attachments {
    pub(crate) fn is_empty(&self) -> bool {
        self.grants.is_empty() && self.descriptors.is_empty()
    }

    /// The kind of a thing in it that only one process may get; `None`: there is no such thing.
    pub(crate) fn exclusive(&self) -> Option<&'static str> {
        self.claims.first().map(|claim| claim.noun())
    }

    /// The same once more, for another message; `None`: something in it only one process may get. The duplicate has no loans.
    pub(crate) fn duplicate(&self) -> Option<Self> {
        let Self { segments, grants, descriptors, claims, loans: _ } = self;
        claims.is_empty().then(|| Self {
            segments: segments.clone(),
            grants: grants.clone(),
            descriptors: descriptors.clone(),
            ..Self::default()
        })
    }

    /// Notes that the message has arrived, or may have: this process loses the exclusive things for good. Returns the loans, which the
    /// caller drops when the receivers have ended.
    pub(crate) fn deliver(&mut self) -> Vec<Loan> {
        self.claims.drain(..).for_each(Claim::keep);
        std::mem::take(&mut self.loans)
    }
}
