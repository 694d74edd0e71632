//! What can be said: commands and replies, the three client dialects, the words between nodes.
//!
//! No I/O here and no clock. `op` is what a command means, `wire` the notation nodes use among themselves.
#![warn(missing_docs)]

pub mod backup;
pub mod cache;
pub mod chunk;
pub mod command;
pub mod frame;
pub mod id;
pub mod limits;
pub mod op;
pub mod outbox;
pub mod peer;
pub mod reply;
pub mod resp;
pub mod snapshot;
mod telnet;
pub mod wire;
