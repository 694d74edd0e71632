//! What is decided: a pure, deterministic state machine. No clock, socket, file, thread or chance in here.
#![no_std]
extern crate alloc;

pub mod effect;
pub mod engine;
pub mod journal;
pub mod outcome;
pub mod table;
