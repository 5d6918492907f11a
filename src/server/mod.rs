//! Client side.
mod stream;
mod worker;
pub use stream::ClientStream;
