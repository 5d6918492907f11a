//! The process around the proxy: sockets, file limit, privileges, pid file, background, signals,
//! log.
//!
//! `main` calls these in the order that their needs dictate: signals first (from then on no stop is
//! unclean), the pid file (it gives the best error if another resilver is running), the sockets
//! while still root, then privileges are dropped, then readiness is reported.

mod background;
mod handed;
mod heap;
mod limits;
mod listen;
mod log_lines;
mod logging;
mod own_files;
mod pid_file;
mod privileges;
mod signals;
mod supervisor;

pub use background::{BackgroundError, detach, start_in_background, tell_ready};
pub(crate) use heap::stir as stir_heap;
pub use heap::{give_memory_back, keep_heap_small};
pub use limits::{FileLimit, LimitError, raise_file_limit};
pub use listen::{BindError, Bound, Listeners, Listening, OperatorListeners, SocketFile, bind};
pub(crate) use listen::{bind_also, bind_for_others, cannot_accept, into_tokio};
pub(crate) use logging::OpenedLog;
pub use logging::{LogError, span_of, start_logging};
pub(crate) use logging::{lost_log_lines, open_log, thread_of};
pub use own_files::OwnFiles;
pub use pid_file::{PidFile, PidFileError};
pub use privileges::{Identity, PrivilegeError};
pub use signals::Signals;
pub use supervisor::Supervisor;
