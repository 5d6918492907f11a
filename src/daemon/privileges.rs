//! Becoming another user for good.

use std::ffi::CString;
use std::path::Path;

use nix::unistd::{Gid, Uid};
use thiserror::Error;

use crate::config::{Account, ProcessSettings, find_group};

/// Why the process could not become who it should be.
#[derive(Debug, Error)]
pub enum PrivilegeError {
    #[error("-u/--user {0}: there is no such user here")]
    NoUser(String),
    #[error("-g/--group {0}: there is no such group here")]
    NoGroup(String),
    /// A step was refused.
    #[error(
        "cannot become {wanted}: {step} was refused: {cause}; only root can, so start it as root or drop -u and -g"
    )]
    Refused {
        /// User or group as given.
        wanted: String,
        step: &'static str,
        cause: nix::Error,
    },
    /// The process could become root again: running on would feign a safety that is not there.
    #[error("became {0}, but could become root again; refusing to run so")]
    Reversible(String),
}

/// Who the process becomes. Looked up before the sockets are bound, so that a wrong name costs
/// nothing.
#[derive(Clone, Debug)]
pub struct Identity {
    /// As given, for messages.
    wanted: String,
    /// Account name, where the user has one: it decides the supplementary groups.
    name: Option<CString>,
    uid: Option<Uid>,
    gid: Option<Gid>,
}

impl Identity {
    /// Looks up `-u` and `-g`; `None` if neither asks for anybody else than who the process already
    /// is.
    ///
    /// # Errors
    ///
    /// The user or group does not exist.
    pub fn wanted(settings: &ProcessSettings) -> Result<Option<Identity>, PrivilegeError> {
        let user = match &settings.user {
            Some(name) => Some(Account::find(name).ok_or_else(|| PrivilegeError::NoUser(name.clone()))?),
            None => None,
        };
        let group = match &settings.group {
            Some(name) => Some(find_group(name).ok_or_else(|| PrivilegeError::NoGroup(name.clone()))?),
            None => None,
        };
        let uid = user.as_ref().map(|user| Uid::from_raw(user.uid));
        let gid = group.or_else(|| user.as_ref().and_then(|user| user.gid)).map(Gid::from_raw);
        let same_user = uid.is_none_or(|uid| uid == nix::unistd::geteuid());
        let same_group = gid.is_none_or(|gid| gid == nix::unistd::getegid());
        // `-u root` as root, or one's own name without being root: nothing to do.
        if same_user && (same_group || group.is_none()) {
            return Ok(None);
        }
        let wanted = match (&settings.user, &settings.group) {
            (Some(user), Some(group)) => format!("user {user}, group {group}"),
            (Some(user), None) => format!("user {user}"),
            (None, Some(group)) => format!("group {group}"),
            (None, None) => return Ok(None),
        };
        let name = user.and_then(|user| user.name).and_then(|name| CString::new(name).ok());
        Ok(Some(Identity { wanted, name, uid, gid }))
    }

    /// Gives a file made while still root to the user to be, so that he can remove it, and open it
    /// again.
    ///
    /// # Errors
    ///
    /// `chown` was refused.
    pub fn hand_over(&self, path: &Path) -> Result<(), PrivilegeError> {
        nix::unistd::chown(path, self.uid, self.gid).map_err(|cause| self.refused("chown", cause))
    }

    /// Becomes this user, with his groups and no others, irrevocably.
    ///
    /// # Errors
    ///
    /// A step was refused; the process must not go on.
    pub fn assume(&self) -> Result<(), PrivilegeError> {
        if let Some(gid) = self.gid {
            // Groups first: afterwards one is not allowed to any more.
            self.set_groups(gid)?;
            nix::unistd::setgid(gid).map_err(|cause| self.refused("setgid", cause))?;
        }
        if let Some(uid) = self.uid {
            nix::unistd::setuid(uid).map_err(|cause| self.refused("setuid", cause))?;
            if !uid.is_root() && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
                return Err(PrivilegeError::Reversible(self.wanted.clone()));
            }
        }
        Ok(())
    }

    #[cfg(not(target_vendor = "apple"))]
    fn set_groups(&self, gid: Gid) -> Result<(), PrivilegeError> {
        match &self.name {
            Some(name) => nix::unistd::initgroups(name, gid).map_err(|cause| self.refused("initgroups", cause)),
            None => nix::unistd::setgroups(&[gid]).map_err(|cause| self.refused("setgroups", cause)),
        }
    }

    /// macOS keeps supplementary groups in a directory service, and dropping them is not offered
    /// safely.
    #[cfg(target_vendor = "apple")]
    fn set_groups(&self, _gid: Gid) -> Result<(), PrivilegeError> {
        Err(self.refused("setgroups", nix::Error::ENOTSUP))
    }

    fn refused(&self, step: &'static str, cause: nix::Error) -> PrivilegeError {
        PrivilegeError::Refused { wanted: self.wanted.clone(), step, cause }
    }
}
