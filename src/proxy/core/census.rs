//! Who is connected, and what each is about: for `stats conns`.

use std::time::Duration;

use crate::proxy::client::Client;
use crate::proxy::handles::ClientId;

use super::{Core, Now};

/// One client, for `stats conns`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connected {
    /// Where it comes from, and where it has connected to.
    pub peer: String,
    pub local: String,
    /// memcached's word.
    pub state: &'static str,
    /// Since it has sent anything.
    pub silent: Duration,
}

impl Core {
    /// What each client is about, in memcached's words, and since when it has sent nothing.
    pub fn client_states(&self, now: Now) -> impl Iterator<Item = (ClientId, &'static str, Duration)> + '_ {
        self.clients.ids().map(move |id| {
            let client = &self.clients[id];
            (id, state(client), Duration::from_micros(now.us.saturating_sub(client.received_us)))
        })
    }
}

fn state(client: &Client) -> &'static str {
    if client.closing {
        "conn_closing"
    } else if client.swallow > 0 {
        "conn_swallow"
    } else if client.has_unsent() {
        "conn_mwrite"
    } else if !client.is_idle() {
        "conn_parse_cmd"
    } else if client.partial.is_empty() {
        "conn_read"
    } else if client.need > 0 {
        "conn_nread"
    } else {
        "conn_waiting"
    }
}
