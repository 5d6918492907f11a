//! What the commands for a terminal share: how a running proxy is asked, and how what it says is
//! shown.

pub(crate) mod connection;
pub(crate) mod proxy;
pub(crate) mod table;
