//! What a pause container tells the world: the status format, written by the pause program and read by the agent.
//!
//! This library is `no_std`, allocates nothing and never trusts a byte that it reads: a status is input from a
//! tenant of the node. It makes no system call; where the bytes come from is its caller's affair.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod stat;
pub mod status;

pub use status::{ROOM, Refusal, Separator, Status};
