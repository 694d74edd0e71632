//! What is decided: a pure, deterministic state machine. No clock, socket, file, thread or chance in here.
#![no_std]
extern crate alloc;

pub mod batch;
pub mod cache;
pub mod consensus;
pub mod effect;
pub mod engine;
pub mod fence;
pub mod gateway;
pub mod group;
pub mod household;
pub mod journal;
pub mod keep;
pub mod lock;
pub mod members;
pub mod memory;
pub mod outbox;
pub mod outcome;
pub mod partition;
pub mod portion;
pub mod queue;
pub mod rebase;
pub mod ring;
#[cfg(test)]
mod script;
pub mod snapshot;
pub mod state;
pub mod store;
pub mod system;
pub mod table;
pub mod time;
pub mod trash;
