//! What is done: sockets, files, threads around the engine.

pub mod admin;
pub mod answers;
pub mod check;
pub mod client_memory;
pub mod clock;
pub mod config;
pub mod connection;
pub mod dev;
pub mod driver;
pub mod founded;
pub mod gate;
pub mod journal;
pub mod listen;
pub mod loops;
pub mod mailbox;
pub mod metrics;
pub mod node;
pub mod outlet;
pub mod peers;
pub mod restore;
pub mod subscriptions;
mod sync;
pub mod tracking;
pub mod transaction;
pub mod view;
