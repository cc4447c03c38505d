//! What crosses between processes, and how: job, report, ledger, messages, and the file descriptors beside them.
//!
//! - `names`: environment variables, exit codes, the protocol version
//! - `marker`: the line by which a worker knows that it is one
//! - `message`: the header of a job
//! - `codec`: values to bytes and attachments, and back
//! - `job`: a job in a sealed memfd
//! - `lifecycle`: pure: the states of a worker
//! - `lifeline`: the second way in which a worker dies with its launcher
//! - `manifest`: how each thing that travels beside the bytes gets to the other side
//! - `fd_passing`: any number of descriptors with one message
//! - `framed`: a message of any size with any number of descriptors
//! - `value_message`: an encoded value as one message
//! - `result_channel`: results with memory beside them
//! - `running_task`: the task that a worker of a pool runs, whose end ends its waits
//! - `stop_word`: a word and an event by which a launcher tells its workers that it ends them
//! - `stop_pipe`: the same for programs, in any language
//! - `setup`: what a worker knows of itself, has of its own and does before its function
//! - `slot`: the report slot, a memfd that a worker fills and the launcher reads

pub(crate) mod codec;
pub(crate) mod fd_passing;
pub(crate) mod framed;
pub(crate) mod job;
pub(crate) mod ledger;
pub(crate) mod lifecycle;
pub(crate) mod lifeline;
pub(crate) mod manifest;
pub(crate) mod marker;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod result_channel;
pub(crate) mod roster;
pub(crate) mod running_task;
pub(crate) mod service;
pub(crate) mod setup;
pub(crate) mod slot;
pub(crate) mod stop_pipe;
pub(crate) mod stop_word;
pub(crate) mod value_message;
