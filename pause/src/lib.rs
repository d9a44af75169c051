//! The status format of a pause container, written by the pause program and read by the agent.
//!
//! This library is `no_std`, allocates nothing, makes no system call, and trusts no byte that it reads: a status is input from
//! a tenant of the node.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod stat;
pub mod status;

pub use status::{CountError, ROOM, ROOM_ARGUMENT, Refusal, Separator, Status};
