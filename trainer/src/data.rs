//! Data by themselves: told on a command line, looked at, indexed, converted.

pub mod data_source;
pub mod data_tools;
