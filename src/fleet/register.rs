//! Where the proxies of a fleet agree: opened once, at the start.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{FleetSettings, RegisterSettings};
use crate::coord::{Access, Etcd, FIRST_WORD, FileRegister, Holder, Register};

/// The longest name of a fleet: it stands in one line between proxies, see `peers`.
const NAME_MAX: usize = 200;

pub(super) struct Opened {
    pub(super) register: Box<dyn Register>,
    /// The fleet's name.
    pub(super) name: Arc<str>,
    /// Where the record stands, for people.
    pub(super) place: String,
}

/// # Errors
///
/// What will never do.
pub(super) fn open(own: &FleetSettings, holder: Holder) -> std::io::Result<Opened> {
    let refuse = |why: String| std::io::Error::other(format!("--coordinate: {why}"));
    match &own.register {
        RegisterSettings::File(path) => {
            // One file has one name, however its path is spelt.
            let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
            let real = directory.zip(path.file_name()).map_or_else(|| path.clone(), |(at, file)| at.join(file));
            // Of this host: another one's file of that name is another one.
            let name = format!("file:{}{}", real.display(), of_this_host()).replace(char::is_whitespace, "_");
            if name.len() > NAME_MAX {
                let most = NAME_MAX + real.as_os_str().len() - name.len();
                return Err(refuse(format!("{} is too long: give a path of at most {most} bytes", real.display())));
            }
            let register = FileRegister::open(&real, holder).map_err(|why| refuse(why.to_string()))?;
            let place = format!("--coordinate file:{}", path.display());
            Ok(Opened { register: Box::new(register), name: name.into(), place })
        }
        RegisterSettings::Etcd { members, name } => {
            let access = own.login.as_deref().map(login).transpose()?;
            let mut etcd = Etcd::new(members, name, access);
            if let Some(path) = own.login.clone() {
                etcd = etcd.told_by(move || login(&path).ok());
            }
            match etcd.judge(Instant::now() + FIRST_WORD) {
                Ok(None) => {}
                Ok(Some(why)) => return Err(refuse(why)),
                // It may come: a standby waits for it.
                Err(why) => tracing::error!("{why}: no proxy can become active before one answers"),
            }
            let place = format!("etcd, key /resilver/v1/{name}/active");
            Ok(Opened { register: Box::new(etcd), name: name.as_str().into(), place })
        }
    }
}

/// How the names of fleets end that agree in a file of this host.
fn of_this_host() -> String {
    format!("@{}", super::host()).replace(char::is_whitespace, "_")
}

/// Whether all proxies of that fleet are on this host.
pub(super) fn is_of_this_host(name: &str) -> bool {
    name.starts_with("file:") && name.ends_with(&of_this_host())
}

fn login(path: &Path) -> std::io::Result<Access> {
    let refuse = |why: String| std::io::Error::other(format!("--coordinate-login {}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    match text.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((user, password)) if !user.is_empty() => {
            Ok(Access { user: user.to_owned(), password: password.to_owned() })
        }
        _ => Err(refuse("must hold one line, USER:PASSWORD".to_owned())),
    }
}
