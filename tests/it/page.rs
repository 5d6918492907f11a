//! The admin page in a real browser: through a kill and a refill, and over a state whose every word
//! tries to be markup. With `RESILVER_PAGE_PICTURES=FOLDER` it writes the pictures of
//! docs/monitoring.md (scripts/page-pictures).

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::admin::get;
use crate::support::cluster::fill;
use crate::support::port::Port;
use crate::support::{Cluster, Shape, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);

/// Debian's Chromium, without a window.
fn browser(url: &str, arguments: &[&str]) -> Option<String> {
    let profile = tempfile::tempdir().expect("a folder");
    let child = Command::new("chromium")
        // Root may run it without a sandbox alone; what it is shown is ours.
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-background-networking", "--virtual-time-budget=3000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(url)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            eprintln!("SKIPPED: the page in a browser: {error} (scripts/need-chromium installs it)");
            return None;
        }
    };
    let mut stdout = child.stdout.take().expect("its output");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let begun = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().expect("kill the browser");
            panic!("the browser does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(reader.join().expect("its output").expect("text"))
}

/// The page as it stands after the script ran.
pub fn seen(url: &str) -> Option<String> {
    browser(url, &["--window-size=1200,900", "--dump-dom"])
}

/// Where pictures go, if they are wanted.
fn pictures() -> Option<PathBuf> {
    std::env::var_os("RESILVER_PAGE_PICTURES").map(PathBuf::from)
}

fn picture(url: &str, name: &str, size: &str, dark: bool) {
    let Some(folder) = pictures() else { return };
    let file = format!("--screenshot={}", folder.join(format!("page-{name}.png")).display());
    let size = format!("--window-size={size}");
    let mut arguments = vec![file.as_str(), size.as_str()];
    arguments.extend(dark.then_some("--force-dark-mode"));
    browser(url, &arguments);
}

fn with_admin(shape: Shape) -> (Port, Cluster) {
    let admin = Port::reserve();
    let cluster = Cluster::start(&shape.proxy(&["--admin", &admin.addr()]));
    (admin, cluster)
}

#[test]
fn the_page_shows_a_kill_and_a_refill_in_a_real_browser() {
    // So slow that a browser, which takes seconds to start, sees it under way.
    let (admin, mut cluster) = with_admin(Shape::new(2, 1).proxy(&["--resync-rate", "40"]));
    let url = format!("http://{}/", admin.addr());
    fill(&mut cluster.client(), "k", 4000, 50);
    let traffic = pictures().map(|_| crate::support::Load::start(&cluster.proxy.addr(), crate::support::Mix::full(20)));
    if traffic.is_some() {
        std::thread::sleep(Duration::from_secs(60));
    }
    let Some(page) = seen(&url) else { return };
    picture(&url, "mirrored", "1200,760", false);
    for part in
        ["data-word=\"mirrored\"", "MIRRORED", "every item has two copies", "<title>MIRRORED – Resilver</title>"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    // Both servers, and a line for each pair with the dot of whoever leads.
    let count = |page: &str, part: &str| page.matches(part).count();
    let drawn = |page: &str| (count(page, "class=\"mirrored\" d=\"M"), count(page, "class=\"leads\" cx"));
    // One of each stands in the legend.
    assert_eq!(drawn(&page), (3, 3), "{page}");
    for server in cluster.primaries.iter().chain(&cluster.backups) {
        assert!(page.contains(&server.addr()), "{}", server.addr());
    }

    let dead = cluster.primaries[1].addr();
    cluster.primaries[1].kill();
    cluster.wait_lost(&dead);
    wait_until("the loss to be shown", DEADLINE, || get(&admin, "/status.json").contains("\"word\":\"degraded\""));
    let page = seen(&url).expect("a browser");
    picture(&url, "degraded", "1200,860", false);
    for part in [
        "data-word=\"degraded\"",
        "1 of 2 pairs has one copy",
        &format!("start memcached on {dead}; it is refilled by itself"),
        &format!("server {dead} is lost, reason "),
        "class=\"degraded",
        "✕ lost",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(page.contains(&format!("<b>server {dead}</b> lost, reason ")), "the last changes: {page}");

    cluster.primaries[1].restart();
    cluster.wait_copying(&dead);
    let page = seen(&url).expect("a browser");
    picture(&url, "recovering", "1200,960", false);
    picture(&url, "phone", "390,1500", false);
    let backup = cluster.backups[0].addr();
    for part in [
        "data-word=\"recovering\"",
        "its second is being filled",
        "<progress max=\"1\"",
        &format!("<b>{dead}</b> ← {backup} (full)"),
        " left",
        "class=\"recovering",
        "class=\"tip\"",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    if let Some(load) = traffic {
        load.stop();
        large_picture();
    }
}

/// 32 servers, one of which is lost.
fn large_picture() {
    let (admin, mut cluster) = with_admin(Shape::new(16, 16).nodes(&["-m", "16"]));
    fill(&mut cluster.client(), "k", 4000, 50);
    cluster.primaries[2].kill();
    let dead = cluster.primaries[2].addr();
    cluster.wait_lost(&dead);
    std::thread::sleep(Duration::from_secs(8));
    picture(&format!("http://{}/", admin.addr()), "large", "1200,1150", true);
}

/// What a server, or whoever names one, can say: it stays text.
#[test]
fn markup_in_the_state_stays_text() {
    const EVIL: &str =
        "<img src=x onerror=\"document.body.dataset.pwned=1\"><script>document.body.dataset.pwned=1</script>";
    let server = |place: &str, name: String| {
        json!({"server": name, "place": place, "state": EVIL, "reason": EVIL, "resync": "running", "kind": EVIL,
               "items_total": 9, "items_copied": 1, "items_skipped": 0, "items_failed": 1, "rate": 1, "eta_seconds": 0,
               "for_seconds": 3, "lost": 1, "version": EVIL})
    };
    let (primary, backup) = (format!("a{EVIL}"), format!("b{EVIL}"));
    let status = json!({
        "version": 1, "word": EVIL, "why": EVIL, "next": EVIL, "mirrored": false, "mode": EVIL, "obstacles": [EVIL],
        "pairs": [{"pair": format!("{primary}|{backup}"), "state": "recovering", "reason": EVIL, "leader": backup}],
        "servers": [server("primary", primary), server("backup", backup)],
        "resync": {"yield:state": EVIL, "yield:percent": EVIL, "pairs_unused": 0},
        "counters": {"resilver_version": EVIL, "uptime": 1, "curr_connections": EVIL, "max_connections": EVIL,
                     "server_errors": 0, "time": 1},
        "changes": [{"unix_time": 1, "name": EVIL, "what": EVIL, "reason": EVIL}],
        "history": {"step_seconds": 2, "requests_per_second": [1], "errors_per_second": [1], "hit_ratio": [null],
                    "latency_p50_us": [1], "latency_p99_us": [1]},
    });
    let Some(page) = seen(&serve(status)) else { return };
    assert!(page.contains("data-word=\"&lt;img") && page.contains("<b>&lt;img src=x"), "it was shown: {page}");
    assert!(!page.contains("data-pwned") && !page.contains("<img"), "{page}");
    assert_eq!(page.matches("<script").count(), 1, "{page}");
}

/// Serves the page, without the policy that would keep foreign scripts from running, over a state.
fn serve(status: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/page.html");
    let page = std::fs::read_to_string(page).expect("the page");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (page, status) = (page.clone(), status.to_string());
            std::thread::spawn(move || answer(stream, &page, &status));
        }
    });
    url
}

fn answer(mut stream: TcpStream, page: &str, status: &str) {
    let mut request = Vec::new();
    let mut block = [0; 4096];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut block) {
            Ok(read @ 1..) => request.extend_from_slice(&block[..read]),
            _ => return,
        }
    }
    let (kind, body) = if request.starts_with(b"GET / ") { ("text/html", page) } else { ("application/json", status) };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
}

/// The page under its policy: scripts and styles of its own alone, anew with each answer.
#[test]
fn the_page_lets_nothing_in_from_elsewhere() {
    let (admin, _cluster) = with_admin(Shape::new(1, 1));
    let answer = || {
        let mut stream = TcpStream::connect(admin.addr()).expect("the admin listener");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    };
    let (head, body) = answer();
    let policy = head.lines().find(|line| line.starts_with("content-security-policy: ")).expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    let nonce = policy.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert_eq!((nonce.len(), body.matches(nonce).count()), (32, 2), "one script, one style");
    assert_ne!(answer().0, head, "the next one has another");
    // Without a network: nothing is fetched but the state.
    assert_eq!(body.matches("http").count(), body.matches("http://www.w3.org/2000/svg").count());
    assert!(!body.contains("innerHTML") && !body.contains("document.write") && !body.contains("eval("));
}
