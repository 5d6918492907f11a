//! A running proxy is asked, within a deadline; whoever does not answer, or is none, is told of
//! with what to do.

use std::io::ErrorKind;
use std::time::Duration;

use super::connection::{Connection, Endpoint, Said};
use crate::lease;
use crate::protocol::statistics::Stats;
use crate::report::names::{self, STATE};
use crate::report::seen::{Fields, Seen};
use crate::report::traffic::Traffic;

/// The proxy, in a command's arguments.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ProxyArg {
    /// The proxy: its address, or the path of its unix socket or admin socket
    #[arg(long, value_name = "HOST:PORT|PATH", default_value = DEFAULT)]
    pub(crate) proxy: Endpoint,

    /// Of several pools this one, where the proxy is asked on its admin socket; status, top, key
    /// and wait without it are about all of them, and a command that names a server finds its pool
    #[arg(long, value_name = "NAME", value_parser = pool_name)]
    pub(crate) pool: Option<String>,
}

/// It is a word of a command.
fn pool_name(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if text.is_empty() || text.contains(bad) { Err("is no pool's name".to_owned()) } else { Ok(text.to_owned()) }
}

const DEFAULT: &str = "127.0.0.1:11211";

impl ProxyArg {
    /// Stands behind a command that is suggested: it is for the same proxy.
    pub(crate) fn again(&self) -> String {
        let proxy = match self.proxy.to_string() {
            proxy if proxy == DEFAULT => String::new(),
            proxy => format!(" --proxy {proxy}"),
        };
        let pool = self.pool.as_ref().map_or(String::new(), |pool| format!(" --pool {pool}"));
        proxy + &pool
    }

    /// For people: the proxy, and which pool of it.
    pub(crate) fn name(&self) -> String {
        let pool = self.pool.as_ref().map_or(String::new(), |pool| format!(" pool {pool}"));
        format!("{}{pool}", self.proxy)
    }

    /// Each of its pools by itself, where it has several and none is named.
    pub(crate) fn each(&self) -> Result<Vec<ProxyArg>, String> {
        let names = Proxy::open(self)?.pools()?;
        Ok(if names.is_empty() { vec![self.clone()] } else { names.into_iter().map(|name| self.of(name)).collect() })
    }

    fn of(&self, pool: String) -> ProxyArg {
        ProxyArg { proxy: self.proxy.clone(), pool: Some(pool) }
    }

    /// Which of these pools has this server: no two of them share one.
    pub(crate) fn of_server(&self, server: &str, names: &[String]) -> Result<ProxyArg, String> {
        let state = format!("{server}:{STATE}");
        // (One that does not answer hides no other one.)
        let mut silent = String::new();
        for name in names {
            let at = self.of(name.clone());
            match Proxy::open(&at).and_then(|mut proxy| proxy.stats("stats servers")) {
                Ok(stats) if stats.iter().any(|(stat, _)| *stat == state) => return Ok(at),
                Ok(_) => {}
                Err(why) => silent = format!("; pool {name}: {why}"),
            }
        }
        let (proxy, names) = (&self.proxy, names.join(", "));
        Err(format!("{proxy}: no pool has a server {server}; there are the pools {names}{silent}"))
    }

    /// Looks at it; at each of its pools by itself, where it has several and none is named. An
    /// error says why nothing is known of any.
    pub(crate) fn look(&self, counters: bool) -> Result<Vec<Looked>, String> {
        let mut proxy = Proxy::open(self)?;
        let names = proxy.pools()?;
        if names.is_empty() {
            let said = proxy.look(counters)?;
            return Ok(vec![Looked { at: self.clone(), said: Ok(said) }]);
        }
        drop(proxy);
        // A connection for each pool: a late answer of one would be taken for the next one's.
        let look = |name| {
            let at = self.of(name);
            let said = Proxy::open(&at).and_then(|mut proxy| proxy.look(counters));
            Looked { at, said }
        };
        let all: Vec<Looked> = names.into_iter().map(look).collect();
        match all.iter().map(|looked| looked.said.as_ref().err()).collect::<Option<Vec<_>>>() {
            Some(silent) => Err(silent.into_iter().cloned().collect::<Vec<_>>().join("; ")),
            None => Ok(all),
        }
    }

    /// A connection on which its pool is asked.
    pub(crate) fn connect(&self) -> std::io::Result<Connection> {
        let mut connection = Connection::open(&self.proxy, ANSWER_TIMEOUT)?;
        if let Some(pool) = &self.pool {
            let said = connection.ask(&format!("pool {pool}"))?.line();
            if said != "OK" {
                return Err(std::io::Error::new(ErrorKind::InvalidInput, format!("it answered {said:?}")));
            }
        }
        Ok(connection)
    }
}

/// What a pool says of itself, or a proxy that has none by name; or why it says nothing.
pub(crate) struct Looked {
    pub(crate) at: ProxyArg,
    pub(crate) said: Result<(Seen, Traffic), String>,
}

/// How long an answer's beginning may take, and the rest of it.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the whole of an answer may take for which servers are asked; a list of keys, as long as
/// something comes. Longer than the proxy lets a command wait: what is given up here is not done
/// afterwards.
pub(crate) const WHOLE_TIMEOUT: Duration = Duration::from_secs(25);
/// Lines of the longest answer: `stats servers` has some ten for each of at most 256 servers, and
/// `resync status` one for each pair.
const STATS_MAX: usize = 256 << 10;

/// Between two looks at a proxy, which has better to do than to be looked at.
pub(crate) fn pause(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(50);
    match patience(text)? {
        pause if pause < LEAST => Err("must be 50ms at least".to_owned()),
        pause => Ok(pause),
    }
}

/// How long may be waited for at most. The end of a longer time may be beyond what the clock can
/// say.
pub(crate) fn patience(text: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_secs(365 * 86_400);
    match crate::config::parse_time(text)? {
        time if time > MOST => Err("must be 365days at most".to_owned()),
        time => Ok(time),
    }
}

/// An answer of lines.
pub(crate) enum Answer {
    Stats(Stats),
    /// Its first line was something else.
    Other(String),
}

/// Asks for statistics.
pub(crate) fn stats(connection: &mut Connection, command: &str) -> std::io::Result<Answer> {
    let mut said = connection.ask(command)?;
    let mut stats = Vec::new();
    while let Some(stat) = said.stat() {
        stats.push(stat);
        if stats.len() > STATS_MAX {
            return Err(std::io::Error::other("an answer without end"));
        }
        said = connection.reply()?;
    }
    Ok(if said.is_end() && !stats.is_empty() { Answer::Stats(stats) } else { Answer::Other(said.line()) })
}

/// Whether a standby says that itself, in the place of the active proxy.
fn is_of_a_standby(words: &str) -> bool {
    words.starts_with("no proxy is active") || words.starts_with("the active proxy")
}

/// A proxy that answers.
pub(crate) struct Proxy<'a> {
    at: &'a Endpoint,
    connection: Connection,
}

impl<'a> Proxy<'a> {
    /// An error is a sentence that names the proxy.
    pub(crate) fn open(at: &'a ProxyArg) -> Result<Proxy<'a>, String> {
        match at.connect() {
            Ok(connection) => Ok(Proxy { at: &at.proxy, connection }),
            Err(error) => Err(failed(&at.proxy, &error)),
        }
    }

    pub(crate) fn stats(&mut self, command: &str) -> Result<Stats, String> {
        match stats(&mut self.connection, command) {
            Ok(Answer::Stats(stats)) => Ok(stats),
            Ok(Answer::Other(line)) => Err(refused(self.at, &line)),
            Err(error) => Err(failed(self.at, &error)),
        }
    }

    /// The names of those of which one is to be chosen.
    pub(crate) fn pools(&mut self) -> Result<Vec<String>, String> {
        let said = self.must_be_ours()?;
        let names = said.text(names::POOLS).split(", ").filter(|name| !name.is_empty());
        Ok(names.map(str::to_owned).collect())
    }

    /// What it says of itself, and of what it is asked. `counters`: also what `stats` says, for
    /// which it asks its servers.
    fn look(&mut self, counters: bool) -> Result<(Seen, Traffic), String> {
        let (at, said) = (self.at, self.must_act()?);
        // A standby passes the question on to the active proxy.
        self.look_on(counters).map_err(|why| match said.text(names::ROLE) {
            "standby" => {
                let active = said.text(names::ACTIVE);
                if let Some((_, words)) = why.split_once("SERVER_ERROR ").filter(|(_, words)| is_of_a_standby(words)) {
                    let words = words.trim_end_matches('"');
                    return format!("{at}: is a standby, and passes nothing on: {words}{}", trouble(&said));
                }
                // (It may be starting.)
                let answer = match why.split_once("SERVER_ERROR ") {
                    Some((_, words)) => format!("says: {}", words.trim_end_matches('"')),
                    None => "does not answer".to_owned(),
                };
                format!("{at}: is a standby, and the active proxy, {active}, {answer}{}", trouble(&said))
            }
            _ => why,
        })
    }

    fn look_on(&mut self, counters: bool) -> Result<(Seen, Traffic), String> {
        let at = self.at;
        // Not `resync status`, which `--operator-commands off` refuses to clients.
        let status = self.stats("stats resync")?;
        let counters = if counters { self.stats("stats")? } else { Vec::new() };
        let seen = Seen::of([status, counters, self.stats("stats servers")?]).ok_or_else(|| stranger(at))?;
        let traffic = Traffic::of(&self.stats("stats traffic")?).ok_or_else(|| stranger(at))?;
        Ok((seen, traffic))
    }

    /// An error where it is none of ours: a memcached answers `stats` too, and lists its keys.
    /// Each proxy of a fleet answers this itself, whichever is active.
    pub(crate) fn must_be_ours(&mut self) -> Result<Fields, String> {
        let said = Fields::of(self.stats("stats proxy")?);
        if said.text(names::ROLE).is_empty() { Err(stranger(self.at)) } else { Ok(said) }
    }

    /// An error also where it can answer nothing else: what it is asked is answered when that is
    /// over, or never.
    fn must_act(&mut self) -> Result<Fields, String> {
        let said = self.must_be_ours()?;
        let (at, why) = (self.at, trouble(&said));
        match (said.text(names::ROLE), said.text(names::READY), said.text(names::ACTIVE)) {
            ("starting", ..) | ("active", "0", _) => {
                Err(format!("{at}: is starting: its servers are looked at; the log names one that hangs"))
            }
            ("suspended", ..) => Err(format!("{at}: is suspended: {}{why}", lease::OVER)),
            ("standby", "0", "none") => {
                Err(format!("{at}: is a standby, and no proxy of the fleet is active: clients wait{why}"))
            }
            ("standby", "0", active) => {
                Err(format!("{at}: is a standby that does not reach the active proxy, {active}: clients wait{why}"))
            }
            _ => Ok(said),
        }
    }

    /// The first part of an answer in another form.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Said, String> {
        self.connection.ask(command).map_err(|error| failed(self.at, &error))
    }

    /// The next part of it.
    pub(crate) fn reply(&mut self) -> Result<Said, String> {
        self.connection.reply().map_err(|error| failed(self.at, &error))
    }

    /// The rest of the answer, and the next ones, have this long.
    pub(crate) fn be_patient(&mut self, patience: Duration) {
        self.connection.be_patient(patience);
    }
}

/// What keeps it from acting, behind a sentence.
fn trouble(said: &Fields) -> String {
    match said.text(names::TROUBLE) {
        "" => String::new(),
        trouble => format!("; {trouble}"),
    }
}

/// It answers, and not as a proxy of ours does.
pub(crate) fn stranger(proxy: &Endpoint) -> String {
    format!("{proxy}: is no resilver, or of another version")
}

/// What to do about an error of the connection.
fn failed(proxy: &Endpoint, error: &std::io::Error) -> String {
    let advice = match (error.kind(), proxy) {
        (ErrorKind::ConnectionRefused, Endpoint::Tcp(_)) => {
            "nothing listens there: start the proxy, or give --proxy where it does (-l and -p, or --admin-socket)"
        }
        (ErrorKind::ConnectionRefused, Endpoint::Unix(_)) => "the socket is left behind: start the proxy",
        (ErrorKind::NotFound, Endpoint::Unix(_)) => {
            "there is no such socket: give --proxy that of -f or --admin-socket"
        }
        (ErrorKind::InvalidInput, _) => {
            "--pool NAME is for the admin socket of a proxy whose file has pools (--proxy PATH); where clients connect \
             there is one pool"
        }
        (ErrorKind::PermissionDenied, _) => "it is for its owner and group: run this as one of them",
        (ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::Other, _) => {
            "is it a proxy, and does its process run (not stopped, not overloaded)? Look at its log"
        }
        (ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof, _) => {
            "it has ended, or is no resilver: look at its log"
        }
        _ => "give --proxy the address of a running proxy, or the path of its socket",
    };
    format!("{proxy}: {error}; {advice}")
}

/// What to do about an answer that no proxy of ours gives to what was asked.
pub(crate) fn refused(proxy: &Endpoint, line: &str) -> String {
    let (what, advice) = if line.starts_with("HTTP/") {
        ("is no resilver", "that is HTTP, as on --admin: give --proxy where clients connect, or --admin-socket")
    } else if line.contains("ERROR ") {
        // A sentence of a proxy of ours, or of memcached.
        return format!("{proxy}: it answered {line:?}");
    } else {
        let what = if line == "ERROR" { "is no resilver, or does not know that" } else { "is no resilver" };
        (what, "give --proxy where the proxy listens (-l and -p, or --admin-socket), not one of its servers")
    };
    let shown: String = line.chars().take(80).collect();
    format!("{proxy}: {what}: it answered {shown:?}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of a longer one is beyond what the clock can say.
    #[test]
    fn a_time_that_somebody_waits_has_a_bound() {
        assert_eq!(patience("365days"), Ok(Duration::from_secs(365 * 86_400)));
        assert_eq!(pause("50ms"), Ok(Duration::from_millis(50)));
        for text in ["366days", "500000000000y"] {
            assert_eq!(patience(text), Err("must be 365days at most".to_owned()), "{text}");
            assert_eq!(pause(text), Err("must be 365days at most".to_owned()), "{text}");
        }
        assert!(pause("49ms").is_err());
    }
}
