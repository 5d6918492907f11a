//! Several proxies over the same servers: who acts.
//!
//! One is *active*: it writes to servers, and runs the control plane. The others are *standbys*.
//! Who is active is one record, changed by compare-and-swap alone.
//!
//! - `record`: what it says.
//! - `register`: where it is kept: `etcd`, with its `http` and `lookup`, or a `file`.
//! - `authority`: PURE. How a proxy becomes active, stays so, and ends.

mod authority;
mod etcd;
mod file;
mod http;
mod lookup;
mod record;
mod register;

pub use authority::{Action, Answered, Authority, Burden, Event, Me, Survey, Times, Why};
pub use etcd::{Access, Etcd, FIRST_WORD};
pub use file::FileRegister;
#[cfg(test)]
pub(crate) use lookup::testing::NameServer;
pub(crate) use lookup::{LookUp, share, try_each};
pub use record::{Holder, Lost, Record, Tenure};
pub use register::{Register, Seen, Swapped, Unread, Value};
