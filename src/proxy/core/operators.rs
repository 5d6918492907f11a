//! Connections beyond `--max-clients`: operators must be able to ask what is the matter just when
//! every other place is taken. So a few more are let in, on which only [`is_for_operators`] are
//! taken; anything else is answered with the limit's error, and the connection is closed.

use bytes::BytesMut;

use crate::protocol::dialect::Dialect;
use crate::protocol::outcome::Outcome;
use crate::protocol::request::{Admin, Close, Parsed, Request, Style};
use crate::proxy::client::{Access, Ended};
use crate::proxy::handles::{ClientId, ClientKey};

use super::{Core, Now};

/// What is taken there.
fn is_for_operators(admin: &Admin) -> bool {
    matches!(
        admin,
        Admin::Stats(_)
            | Admin::Resync(_)
            | Admin::Node(_)
            | Admin::List(_)
            | Admin::Version
            | Admin::Noop
            | Admin::Quit
    )
}

/// What an operator sends is no longer than that in the binary protocol, and waited for.
const REQUEST_MAX: usize = 512;

/// How often it is logged that clients are refused, microseconds: who is refused tries again, and
/// many do.
const TOLD_EVERY_US: u64 = 10_000_000;

/// Clients that were refused, for the log.
#[derive(Default, Debug)]
pub(super) struct Refusals {
    untold: u64,
    told_at_us: Option<u64>,
}

impl Core {
    /// A client has connected on one of the places beyond the limit.
    pub fn handle_operator(&mut self, now: Now) -> ClientKey {
        let key = self.handle_connect(now);
        if let Some(client) = self.clients.get_mut(key.id) {
            client.access = Access::Unknown;
        }
        key
    }

    /// Turns away a client beyond the limit that has not shown itself to be an operator, with the
    /// limit's error: to make room, or because its time is over. Returns whether it did.
    pub fn turn_away(&mut self, now: Now, key: ClientKey) -> bool {
        self.now = now;
        let silent = self.clients.of(key).filter(|client| client.access == Access::Unknown && !client.closing);
        let style = silent.map(|client| client.dialect.asked(&client.partial));
        if let Some(style) = style {
            self.refuse_client(key.id, style);
        }
        style.is_some()
    }

    /// Counts a client too many, and logs it now and then.
    pub fn handle_refused(&mut self, now: Now) {
        self.now = now;
        self.count_refused();
    }

    fn count_refused(&mut self) {
        self.stats.rejected();
        let refusals = &mut self.refusals;
        refusals.untold += 1;
        if refusals.told_at_us.is_none_or(|at| self.now.us.saturating_sub(at) >= TOLD_EVERY_US) {
            tracing::warn!(refused = refusals.untold, "clients are refused: -n/--max-clients are connected");
            *refusals = Refusals { untold: 0, told_at_us: Some(self.now.us) };
        }
    }

    fn refuse_client(&mut self, id: ClientId, style: Style) {
        self.answer_at_once(id, style, 0, Outcome::Own(style.too_many()));
        self.close_client(id, Ended::TooMany);
        self.count_refused();
    }

    /// Takes what a client beyond the limit sent.
    pub(super) fn feed_operator(&mut self, id: ClientId, mut chunk: BytesMut) {
        loop {
            let Some(client) = self.clients.get_mut(id).filter(|client| !client.closing) else { return };
            if chunk.is_empty() {
                return;
            }
            if !client.has_room(&self.memory) {
                return self.stall(id, chunk);
            }
            match client.dialect.next(&chunk, &self.limits) {
                // The line is incomplete, or the binary request: more input decides.
                Parsed::Incomplete { need }
                    if need == 0 || client.dialect == Dialect::Binary && need <= REQUEST_MAX =>
                {
                    (client.need, client.searched) = (0, 0);
                    client.partial = chunk;
                    return;
                }
                Parsed::Request { request: Request::Admin(admin), style, len } if is_for_operators(&admin) => {
                    client.access = Access::Operator;
                    if !self.begin_keyless(id, admin, style, &mut chunk, len) {
                        return self.stall(id, chunk);
                    }
                }
                // As where there is a place for it: it would not understand the other answer.
                Parsed::Reject { reply, style, len, close: close @ Some(Close::Foreign(_)), .. } => {
                    return self.reject(id, (style, len), reply, close);
                }
                _ => {
                    let style = client.dialect.asked(&chunk);
                    return self.refuse_client(id, style);
                }
            }
        }
    }
}
