//! The command line: what can be asked of `lcl-trainer`, what it does then, and what its user sees.

pub mod cli;
pub mod commands;
pub mod config_file;
pub mod control_commands;
pub mod data_commands;
pub mod data_page;
pub mod display;
pub mod logs;
mod report_command;
