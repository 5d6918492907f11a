//! What the commands for a terminal share: their arguments, how a running proxy is asked, and how
//! what it says is shown.

pub(crate) mod command;
pub(crate) mod connection;
pub(crate) mod proxy;
pub(crate) mod signs;
pub(crate) mod table;
