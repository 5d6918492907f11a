//! A real Prometheus over a running proxy: its scrape, the alert rules, and every query of the
//! Grafana dashboard.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::admin::{with_admin, with_admin_and};
use crate::support::cluster::fill;
use crate::support::port::Port;
use crate::support::{DEADLINE, wait_until};

/// Over a folder of its own, ended with it.
struct Prometheus {
    child: Child,
    port: Port,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn document(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring").join(name)
}

impl Prometheus {
    /// One that scrapes the proxy five times a second; `None` where there is none on this machine.
    fn start(admin: &Port) -> Option<Prometheus> {
        let folder = tempfile::tempdir().expect("a folder");
        let port = Port::reserve();
        let config = format!(
            "global:\n  scrape_interval: 200ms\n  evaluation_interval: 200ms\nrule_files: [{:?}]\nscrape_configs:\n\
             - job_name: resilver\n  static_configs: [{{targets: ['{}']}}]\n",
            document("alerts.yml"),
            admin.addr()
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).expect("written");
        let spawned = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={}", port.addr()))
            .args(["--log.level=error", "--storage.tsdb.retention.time=1h"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        match spawned {
            Ok(child) => Some(Prometheus { child, port, _folder: folder }),
            Err(error) => {
                eprintln!("SKIPPED: a scrape by Prometheus: {error} (scripts/need-prometheus installs it)");
                None
            }
        }
    }

    /// What it answers to a query, as JSON; `None` before it listens.
    fn answer(&self, expression: &str) -> Option<Value> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric();
        let coded: String = expression
            .bytes()
            .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect();
        let mut stream = TcpStream::connect(self.port.addr()).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.write_all(format!("GET /api/v1/query?query={coded} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    /// The first value of the answer.
    fn query(&self, expression: &str) -> Option<f64> {
        self.answer(expression)?["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

#[test]
fn a_real_prometheus_scrapes_it_and_its_rules_fire() {
    let (admin, mut cluster) = with_admin(1, 1);
    let Some(prometheus) = Prometheus::start(&admin) else { return };
    let query = |expression: &str| prometheus.query(expression);
    wait_until("Prometheus to know that it is mirrored", DEADLINE, || query("resilver_mirrored") == Some(1.0));
    let scraped = query("scrape_samples_scraped").expect("a number");
    assert!(scraped > 100.0, "{scraped} samples");
    cluster.primaries[0].kill();
    cluster.backups[0].kill();
    // The alert that wakes somebody at once.
    let alert = "ALERTS{alertname=\"ResilverDark\"}";
    wait_until("the alert that keys are refused", DEADLINE, || query(alert) == Some(1.0));
    assert_eq!(query("resilver_ready"), Some(0.0));
}

/// Every query of the dashboard, with its panel, as Grafana sends it with all instances chosen.
fn queries(board: &Value) -> Vec<(String, String)> {
    let panels = board["panels"].as_array().expect("panels");
    let of = |panel: &Value| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let expression = |target: &Value| target["expr"].as_str().expect("a query").to_owned();
        targets.iter().map(|target| (title.clone(), expression(target))).collect::<Vec<_>>()
    };
    let sent = |text: String| text.replace("$instance", ".*").replace("$__rate_interval", "1m");
    panels.iter().flat_map(of).map(|(title, query)| (title, sent(query))).collect()
}

/// While clients read, write and err, and a server is filled, so that each has something to show.
#[test]
fn every_query_of_the_dashboard_has_an_answer() {
    let (admin, mut cluster) = with_admin_and(1, 1, &["--resync-rate", "20"]);
    let Some(prometheus) = Prometheus::start(&admin) else { return };
    let mut client = cluster.client();
    fill(&mut client, "k", 5_000, 10);
    let board: Value =
        serde_json::from_str(&std::fs::read_to_string(document("grafana.json")).expect("read")).expect("JSON");
    let all = queries(&board);
    assert!(all.len() > 25 && all.iter().all(|(_, query)| !query.contains('$')), "{all:?}");
    wait_until("Prometheus to scrape", DEADLINE, || prometheus.query("resilver_mirrored") == Some(1.0));
    let filled = cluster.backups[0].addr();
    cluster.backups[0].restart();
    cluster.wait_copying(&filled);
    let mut number = 0;
    for (title, query) in &all {
        let mut answer = Value::Null;
        wait_until(&format!("an answer to {query} ({title})"), DEADLINE, || {
            // Counters grow, also those that first had to be there.
            number += 1;
            for key in [format!("k:{}", number % 5_000), "nothing".to_owned()] {
                let _ = client.get(&key);
            }
            let _ = client.get(&"x".repeat(251));
            let Some(said) = prometheus.answer(query) else { return false };
            assert_eq!(said["status"], "success", "{title}: {query}: {said}");
            answer = said;
            answer["data"]["result"].as_array().is_some_and(|result| !result.is_empty())
        });
        let values = answer["data"]["result"].as_array().expect("a list").iter();
        for value in values.map(|series| series["value"][1].as_str().expect("a value").to_owned()) {
            // A latency of what nobody has done is NaN: Grafana draws nothing there.
            assert!(value.parse::<f64>().is_ok(), "{title}: {query}: {value}");
        }
    }
    // What the variables are chosen from.
    let source = &board["templating"]["list"][1]["query"]["query"];
    assert_eq!(source, "label_values(resilver_build_info, instance)");
    let known = prometheus.answer("resilver_build_info").expect("an answer");
    assert_eq!(known["data"]["result"][0]["metric"]["instance"], admin.addr().as_str());
}
