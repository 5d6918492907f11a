//! The last changes of pairs and servers, for those who look after the event.

use std::collections::VecDeque;

use crate::ambient;
use crate::pair::Reason;
use crate::report::ChangeReport;

/// This many are kept. What several pairs do at once is one.
const KEPT: usize = 64;

/// See the module's words.
#[derive(Default, Debug)]
pub(super) struct Changes(VecDeque<ChangeReport>);

impl Changes {
    /// `what` has happened to a server or pair.
    pub(super) fn note(&mut self, name: String, what: String, reason: Reason) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(ChangeReport { unix_time: ambient::unix_time().as_secs(), name, what, reason });
    }

    /// The newest first.
    pub(super) fn newest_first(&self) -> Vec<ChangeReport> {
        self.0.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_the_newest_is_told_first() {
        let mut changes = Changes::default();
        for number in 0..KEPT + 2 {
            changes.note(format!("server {number}"), "lost".to_owned(), Reason::Reset);
        }
        let told = changes.newest_first();
        assert_eq!((told.len(), told[0].name.as_str()), (KEPT, "server 65"));
        assert_eq!(told.last().map(|change| change.name.as_str()), Some("server 2"));
    }
}
