//! Users and groups of this machine, by name or number.

use nix::unistd::{Gid, Group, Uid, User};

/// A user that a process can become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Account {
    pub uid: u32,
    /// The user's own group; `None` for a number that no account has.
    pub gid: Option<u32>,
    /// Account name, which decides the supplementary groups; `None` for a number that no account
    /// has.
    pub name: Option<String>,
}

impl Account {
    /// The user of that name or number. A name of digits wins over the number.
    pub fn find(wanted: &str) -> Option<Account> {
        let by_name = User::from_name(wanted).ok().flatten();
        let found = by_name.or_else(|| User::from_uid(Uid::from_raw(wanted.parse().ok()?)).ok().flatten());
        match found {
            Some(user) => Some(Account { uid: user.uid.as_raw(), gid: Some(user.gid.as_raw()), name: Some(user.name) }),
            None => Some(Account { uid: wanted.parse().ok()?, gid: None, name: None }),
        }
    }
}

/// The number of the group of that name or number.
pub fn find_group(wanted: &str) -> Option<u32> {
    let by_name = Group::from_name(wanted).ok().flatten();
    by_name.map(|group| group.gid.as_raw()).or_else(|| wanted.parse().ok().map(|gid| Gid::from_raw(gid).as_raw()))
}
