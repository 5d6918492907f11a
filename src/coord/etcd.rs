//! The record in etcd (3.4 and later), through its JSON gateway: two requests, one key.
//!
//! A request whose answer is missing may be executed later, so every error of a swap leaves its
//! outcome unknown. Of several members one is used until it answers with an error, or not at all.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::http::{Answer, Http, HttpError, NO_HTTP, TLS, Until};
use super::lookup::share;
use super::record::Record;
use super::register::{Register, Seen, Swapped, Unread, Value};
use crate::protocol::base64;

/// A user of etcd's.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    pub user: String,
    pub password: String,
}

/// (No password in a log.)
impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:...", self.user)
    }
}

/// Says who it is: it may have changed.
type Tells = Box<dyn Fn() -> Option<Access> + Send>;

/// How long a log-in may take at least: etcd makes it dear (some 0.1 s of a processor), and it
/// comes once, or when somebody changes users or roles, for which all tokens end.
const LOG_IN: Duration = Duration::from_secs(1);

pub struct Etcd {
    members: Vec<Http>,
    /// The member that is asked.
    present: usize,
    /// The key, as the gateway has it.
    key: String,
    access: Option<Access>,
    tells: Option<Tells>,
    token: Option<String>,
    /// The text that was read last, with its revision: another release may have written more in it
    /// than a record shows.
    read: Option<(u64, String)>,
}

impl Etcd {
    pub fn new(members: &[String], name: &str, access: Option<Access>) -> Etcd {
        Etcd {
            members: members.iter().cloned().map(Http::new).collect(),
            present: 0,
            key: base64(format!("/resilver/v1/{name}/active").as_bytes()),
            access,
            tells: None,
            token: None,
            read: None,
        }
    }

    /// This is asked at each log-in. Where it does not know, what was known before counts.
    #[must_use]
    pub fn told_by(self, tells: impl Fn() -> Option<Access> + Send + 'static) -> Etcd {
        Etcd { tells: Some(Box::new(tells)), ..self }
    }

    /// Whether this etcd can be used; one member that can is enough. `Ok(None)`: it can;
    /// `Ok(Some)`: why it never can.
    ///
    /// # Errors
    ///
    /// Why that is not known.
    pub fn judge(&mut self, deadline: Instant) -> Result<Option<String>, Unread> {
        let (mut never, mut unknown) = (None, None);
        for others in (0..self.members.len()).rev() {
            match self.judge_one(share(deadline, others)) {
                Ok(None) => return Ok(None),
                Ok(why) => never = never.or(why),
                Err(why) => unknown = unknown.or(Some(why)),
            }
        }
        unknown.map_or(Ok(never), Err)
    }

    /// The present member, or the first one that can be reached.
    fn judge_one(&mut self, deadline: Instant) -> Result<Option<String>, Unread> {
        let version = |member: &mut Http, until: Until| {
            let answer = member.ask("/version", None, None, until);
            answer.map_err(|error| match error {
                HttpError::Unanswered(_) if member.speaks_tls(until.answered) => HttpError::Unanswered(TLS.to_owned()),
                error => error,
            })
        };
        let answer = match self.each(deadline, |member, _, until| version(member, until)) {
            Err(Unread(why)) if why.contains(NO_HTTP) || why.contains(TLS) => return Ok(Some(why)),
            answer => answer?,
        };
        let whose = self.whose();
        let version = serde_json::from_str::<Json>(&answer.body).ok();
        let version = version.as_ref().and_then(|v| v["etcdserver"].as_str()).unwrap_or_default();
        let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
        let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
            self.pass_on();
            // A load balancer in front of it may have lost it for a while.
            if answer.status >= 500 {
                return Err(Unread(format!("etcd on {whose} answers with HTTP status {}", answer.status)));
            }
            return Ok(Some(format!("what listens on {whose} is no etcd: it does not tell its version")));
        };
        if (major, minor) < (3, 4) {
            self.pass_on();
            return Ok(Some(format!("etcd {version} on {whose} is too old: 3.4 or later is needed")));
        }
        match self.call("/v3/kv/range", &json!({ "key": self.key }), deadline) {
            Ok(_) => Ok(self.forbids_writing(deadline)),
            Err(Failed::Denied(why)) => Ok(Some(format!("etcd on {whose} refuses access: {why}"))),
            Err(Failed::NoGateway(_)) => Ok(Some(format!(
                "etcd {version} on {whose} has no JSON gateway: start it with --enable-grpc-gateway=true"
            ))),
            Err(Failed::Unanswered(why) | Failed::Said(why)) => Err(Unread(why)),
        }
    }

    /// A swap that is never made tells: permissions come first.
    fn forbids_writing(&mut self, deadline: Instant) -> Option<String> {
        let never = i64::MAX.to_string();
        let compared = json!({ "key": self.key, "target": "CREATE", "result": "EQUAL", "create_revision": never });
        let put = json!({ "request_put": { "key": self.key, "value": "" } });
        match self.call("/v3/kv/txn", &json!({ "compare": [compared], "success": [put] }), deadline) {
            Err(Failed::Denied(why)) => {
                let whose = self.whose();
                Some(format!("etcd on {whose} lets this user read the record, but not write it: {why}"))
            }
            // What else there is may pass, and is said when it matters.
            Ok(_) | Err(_) => None,
        }
    }

    /// The address of the member that is asked.
    fn whose(&self) -> String {
        self.members[self.present].authority().to_owned()
    }

    /// Its answer is of no use: another member is asked next time. (Not at once: this one may have
    /// executed the request.)
    fn pass_on(&mut self) {
        self.present = (self.present + 1) % self.members.len();
    }

    /// In which order members are asked: from the present one on, and last those whose names are
    /// still being looked up.
    fn order(&mut self) -> Vec<usize> {
        let count = self.members.len();
        let mut order: Vec<_> = (0..count).map(|at| (self.present + at) % count).collect();
        let known: Vec<_> = self.members.iter_mut().map(Http::is_known).collect();
        order.sort_by_key(|&at| !known[at]);
        order
    }

    /// Asks the present member, and the next ones as long as nothing was sent. So they leave each
    /// other time to be reached, and not to answer: three members that are slow, all of them, would
    /// be in time half as often as one.
    fn each(
        &mut self,
        deadline: Instant,
        mut ask: impl FnMut(&mut Http, Option<&str>, Until) -> Result<Answer, HttpError>,
    ) -> Result<Answer, Unread> {
        let mut said = Vec::new();
        let order = self.order();
        for (others, at) in (0..order.len()).rev().zip(order) {
            self.present = at;
            let member = &mut self.members[at];
            let until = Until { reached: share(deadline, others), answered: deadline };
            let error = match ask(member, self.token.as_deref(), until) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            said.push(format!("etcd on {} {error}", member.authority()));
            self.pass_on();
            if matches!(error, HttpError::Unanswered(_)) {
                break;
            }
        }
        Err(Unread(said.join("; ")))
    }

    fn call(&mut self, path: &str, body: &Json, deadline: Instant) -> Result<Json, Failed> {
        let called = self.call_present(path, &body.to_string(), deadline);
        if matches!(called, Err(Failed::NoGateway(_) | Failed::Said(_))) {
            self.pass_on();
        }
        called
    }

    fn call_present(&mut self, path: &str, body: &str, deadline: Instant) -> Result<Json, Failed> {
        for _ in 0..2 {
            if self.token.is_none() && self.access.is_some() {
                self.log_in(deadline)?;
            }
            let answer = self.each(deadline, |member, token, until| member.ask(path, Some(body), token, until));
            let answer = answer.map_err(|Unread(why)| Failed::Unanswered(why))?;
            let said: Json = serde_json::from_str(&answer.body).unwrap_or(Json::Null);
            let whose = self.whose();
            match (answer.status, said["error"].as_str()) {
                (200, None) if said.is_object() => return Ok(said),
                (404, _) => return Err(Failed::NoGateway(whose)),
                // The token has expired, or the password has changed.
                (401, _) if self.token.take().is_some() => {}
                (_, Some(why)) if is_over(why) && self.token.take().is_some() => {}
                (_, Some(why)) if is_denial(why) => return Err(Failed::Denied(why.to_owned())),
                (_, Some(why)) if why.contains("database space exceeded") => {
                    return Err(Failed::Said(format!(
                        "etcd on {whose} is full ({why}): compact and defragment it, and disarm its alarm"
                    )));
                }
                (_, Some(why)) => return Err(Failed::Said(format!("etcd on {whose} says: {why}"))),
                (status, None) => {
                    return Err(Failed::Said(format!("etcd on {whose} answers with HTTP status {status}")));
                }
            }
        }
        Err(Failed::Said(format!("etcd on {} takes no token that it has just given", self.whose())))
    }

    fn log_in(&mut self, deadline: Instant) -> Result<(), Failed> {
        self.access = self.tells.as_ref().and_then(|tells| tells()).or(self.access.take());
        let Some(Access { user, password }) = self.access.clone() else { return Ok(()) };
        let deadline = deadline.max(Instant::now() + LOG_IN);
        let body = json!({ "name": user, "password": password }).to_string();
        let answer =
            self.each(deadline, |member, _, until| member.ask("/v3/auth/authenticate", Some(&body), None, until));
        let answer = answer.map_err(|Unread(why)| Failed::Unanswered(why))?;
        let said: Json = serde_json::from_str(&answer.body).unwrap_or(Json::Null);
        match said["token"].as_str() {
            Some(token) => self.token = Some(token.to_owned()),
            None => {
                let why = said["error"].as_str().unwrap_or("no token").to_owned();
                let known = is_denial(&why) || why.contains("authentication is not enabled");
                let said = format!("etcd on {} says: {why}", self.whose());
                return Err(if known { Failed::Denied(why) } else { Failed::Said(said) });
            }
        }
        Ok(())
    }
}

/// A token counts no more; by the last word, because a user, a role or a password has changed.
fn is_over(why: &str) -> bool {
    ["invalid auth token", "revision of auth store is old"].iter().any(|w| why.contains(w))
}

fn is_denial(why: &str) -> bool {
    ["permission denied", "user name is empty", "authentication failed", "invalid user"].iter().any(|w| why.contains(w))
}

/// What came of a call.
enum Failed {
    Denied(String),
    /// The member of this name has no JSON gateway.
    NoGateway(String),
    /// The present member says so.
    Said(String),
    /// No member has answered: the next one is in use already.
    Unanswered(String),
}

impl From<Failed> for Unread {
    fn from(failed: Failed) -> Unread {
        Unread(match failed {
            Failed::Denied(why) => format!("etcd refuses access: {why}"),
            Failed::NoGateway(whose) => format!("etcd on {whose} has no JSON gateway"),
            Failed::Said(why) | Failed::Unanswered(why) => why,
        })
    }
}

/// A number of the gateway's, which are texts; what is 0 is left out. (No revision is 0, but a
/// gateway that said so would be understood.)
fn number(json: &Json) -> Option<u64> {
    if json.is_null() { Some(0) } else { json.as_str()?.parse().ok() }
}

impl Register for Etcd {
    fn read(&mut self, deadline: Instant) -> Result<Seen, Unread> {
        let answer = self.call("/v3/kv/range", &json!({ "key": self.key }), deadline)?;
        let Some(found) = answer["kvs"].get(0) else { return Ok(Seen { revision: 0, value: Value::Absent }) };
        let broken = || Unread("etcd answers what is no value".to_owned());
        let revision = number(&found["mod_revision"]).ok_or_else(broken)?;
        let text = found["value"].as_str().map_or(Some(Vec::new()), unbase64).ok_or_else(broken)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let value = Record::parse(&text).map_or(Value::Unreadable, Value::Record);
        self.read = Some((revision, text));
        Ok(Seen { revision, value })
    }

    fn swap(&mut self, seen: &Seen, new: &Record, deadline: Instant) -> Result<Swapped, Unread> {
        let revision = seen.revision.to_string();
        let mut compared =
            vec![json!({ "key": self.key, "target": "MOD", "result": "EQUAL", "mod_revision": revision })];
        if let Some(record) = seen.value.record() {
            let read = self.read.as_ref().filter(|(revision, _)| *revision == seen.revision);
            let read = read.filter(|(_, text)| Record::parse(text).as_ref() == Some(record));
            let text = read.map_or_else(|| record.to_string(), |(_, text)| text.clone());
            let value = base64(text.as_bytes());
            compared.push(json!({ "key": self.key, "target": "VALUE", "result": "EQUAL", "value": value }));
        }
        let put = json!({ "request_put": { "key": self.key, "value": base64(new.to_string().as_bytes()) } });
        let answer = self.call("/v3/kv/txn", &json!({ "compare": compared, "success": [put] }), deadline)?;
        // The gateway leaves out what is false.
        if answer["succeeded"].as_bool() != Some(true) {
            return Ok(Swapped::Refused);
        }
        let revision = number(&answer["header"]["revision"]).filter(|&revision| revision > 0);
        revision.map(Swapped::Done).ok_or_else(|| Unread("etcd answers without a revision".to_owned()))
    }
}

/// How long a start waits for etcd's first answer.
pub const FIRST_WORD: Duration = Duration::from_secs(3);

/// A text as the gateway writes it.
fn base64(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&base64::encode(bytes)).into_owned()
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; text.len() / 4 * 3];
    let len = if text.is_empty() { 0 } else { base64::decode(text.as_bytes(), &mut bytes)? };
    bytes.truncate(len);
    Some(bytes)
}

#[cfg(test)]
mod tests;
