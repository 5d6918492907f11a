//! The screen. Pure.

use std::fmt::{self, Display, Formatter};

use crate::console::signs;
use crate::console::table::{Table, Tone};
use crate::report::figures::{rate, wait};
use crate::report::names::PLACE;
use crate::report::seen::{Named, Seen};
use crate::report::traffic::{Line, Traffic};

/// Servers that are told one by one: those that are not up, and those that are asked most.
const SERVERS_TOLD: usize = 40;
/// What a narrow window does without, the first ones first.
const SPARE: [&str; 5] = ["CONNECTIONS", "IN FLIGHT", "REFUSED/S", "PLACE", "P50"];

pub(super) struct Screen<'a> {
    pub(super) seen: &'a Seen,
    /// Since the last look.
    pub(super) since: &'a Traffic,
    pub(super) proxy: &'a str,
    pub(super) colours: bool,
    /// Of the terminal.
    pub(super) columns: Option<usize>,
}

impl Display for Screen<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.commands(f)?;
        self.servers(f)
    }
}

impl Screen<'_> {
    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let since = self.since;
        let word = self.seen.word();
        write!(f, "resilver {}  {}", self.proxy, signs::of_whole(word).paint(word.text(), self.colours))?;
        write!(f, "  clients {}/{}", since.clients, since.clients_max)?;
        write!(f, "  {} req/s", rate(since.rate(since.requests())))?;
        if let Some(hits) = since.hits() {
            write!(f, "  hits {hits:.1} %")?;
        }
        let errors = since.rate(since.came("server_error"));
        writeln!(f, "  errors {}/s  in {:.1} s", rate(errors), since.span_ms as f64 / 1000.0)
    }

    fn commands(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut all: Vec<(&String, &Line)> = self.since.commands.iter().filter(|(_, line)| line.total() > 0).collect();
        all.sort_by_key(|(_, line)| std::cmp::Reverse(line.total()));
        let mut table = Table::new(&["COMMAND", "REQ/S", "P50", "P99", "HITS", "REFUSED/S", "ERRORS/S"], self.colours);
        for (name, line) in all {
            let errors = line.count("server_error");
            table.row(
                vec![
                    name.clone(),
                    rate(self.since.rate(line.total())),
                    wait(line.percentile_us(50)),
                    wait(line.percentile_us(99)),
                    line.hits().map_or("-".to_owned(), |hits| format!("{hits:.1} %")),
                    rate(self.since.rate(line.count("client_error"))),
                    rate(self.since.rate(errors)),
                ],
                if errors > 0 { Tone::Bad } else { Tone::Plain },
            );
        }
        write!(f, "{}", table.within(self.columns, &SPARE))
    }

    fn servers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let none = Line::default();
        let line = |name: &str| self.since.servers.get(name).unwrap_or(&none);
        let mut all: Vec<_> = self.seen.servers.iter().collect();
        // (Of a low window the last ones are not seen.)
        let is_up = |server: &Named| server.fields.text("state") == "up";
        all.sort_by_key(|server| (is_up(server), std::cmp::Reverse(line(&server.name).total())));
        let head = ["SERVER", "PLACE", "STATE", "CMD/S", "P50", "P99", "IN FLIGHT", "CONNECTIONS"];
        let mut table = Table::new(&head, self.colours);
        for server in all.iter().take(SERVERS_TOLD) {
            let fields = &server.fields;
            let (state, tone) = signs::of_server(fields);
            let line = line(&server.name);
            table.row(
                vec![
                    server.name.clone(),
                    fields.text(PLACE).to_owned(),
                    state,
                    rate(self.since.rate(line.total())),
                    wait(line.percentile_us(50)),
                    wait(line.percentile_us(99)),
                    fields.number("in_flight").to_string(),
                    fields.number("connections").to_string(),
                ],
                tone,
            );
        }
        write!(f, "{}", table.within(self.columns, &SPARE))?;
        match all.len().saturating_sub(SERVERS_TOLD) {
            0 => Ok(()),
            more => writeln!(f, "{more} more servers are asked less than these"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::seen::stats;

    #[test]
    fn what_is_not_up_and_then_what_is_asked_most_stands_first() {
        let status = "mode auto\nmirrored 1\npair:a:1|b:1:state mirrored\nnode:a:1:state up\nnode:b:1:state lost\n\
                      node:c:1:state up";
        let servers = "a:1:place primary\na:1:in_flight 2\na:1:connections 4\nb:1:place backup\nc:1:place primary";
        let seen = Seen::of([stats(status), stats(""), stats(servers)]).expect("an answer");
        let traffic = "uptime_ms 2000
            clients 3
            clients_max 9
            command:get:hit 1500
            command:get:miss 500
            command:get:us:96 2000
            command:set:stored 8
            command:set:server_error 2
            server:a:1:sent 40
            server:b:1:sent 4
            server:b:1:us:512 9
            server:c:1:sent 400";
        let since = Traffic::of(&stats(traffic)).expect("an answer");
        assert_eq!(
            Screen { seen: &seen, since: &since, proxy: "p:1", colours: false, columns: None }.to_string(),
            "\
resilver p:1  MIRRORED  clients 3/9  1005 req/s  hits 75.0 %  errors 1.0/s  in 2.0 s
COMMAND  REQ/S  P50    P99    HITS    REFUSED/S  ERRORS/S
get      1000   0.1ms  0.1ms  75.0 %  0          0
set      5.0    -      -      -       0          1.0
SERVER  PLACE    STATE   CMD/S  P50    P99    IN FLIGHT  CONNECTIONS
b:1     backup   ! lost  2.0    0.6ms  0.6ms  0          0
c:1     primary  up      200    -      -      0          0
a:1     primary  up      20     -      -      2          4
"
        );
    }
}
