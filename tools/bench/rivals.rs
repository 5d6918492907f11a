//! The other proxies, set up as close to resilver as they can be.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::systems::Layout;

/// twemproxy: one thread, one copy.
///
/// Its placement is as cheap as the others' in either mode; the one chosen is what its own example
/// uses.
pub(crate) fn twemproxy(
    port: u16,
    stats_port: u16,
    nodes: &[u16],
    layout: &Layout,
    files: &Path,
) -> io::Result<Command> {
    let mut text = format!(
        "bench:\n  listen: 127.0.0.1:{port}\n  hash: fnv1a_64\n  distribution: ketama\n  preconnect: true\n  backlog: 1024\n"
    );
    text += if layout.fail_over {
        "  timeout: 250\n  auto_eject_hosts: true\n  server_failure_limit: 1\n  server_retry_timeout: 2000\n"
    } else {
        "  timeout: 1000\n  auto_eject_hosts: false\n"
    };
    text += "  servers:\n";
    for node in nodes {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "   - 127.0.0.1:{node}:1");
    }
    let config = files.join(format!("{port}.yml"));
    fs::write(&config, text)?;
    let mut command = Command::new("nutcracker");
    command.arg("-c").arg(&config).arg("-o").arg(files.join(format!("{port}.log")));
    command.args(["-a", "127.0.0.1", "-s", &stats_port.to_string()]);
    Ok(command)
}

/// The routes of memcached's proxy: reads go to the primaries, writes to both pools, whose worse
/// answer counts.
const ROUTES: &str = r#"
local function pool(name, ports)
    local backends = {}
    for i, port in ipairs(ports) do
        backends[i] = mcp.backend(name .. i, "127.0.0.1", port)
    end
    return mcp.pool(backends)
end

local function one(rctx, handle)
    return function(r)
        return rctx:enqueue_and_wait(r, handle)
    end
end

local function either(rctx, handles)
    return function(r)
        local res = rctx:enqueue_and_wait(r, handles[1])
        if res:ok() then
            return res
        end
        return rctx:enqueue_and_wait(r, handles[2])
    end
end

local function both(rctx, handles)
    return function(r)
        rctx:enqueue(r, handles)
        rctx:wait_cond(2, mcp.WAIT_ANY)
        local res, mode = rctx:result(handles[1])
        if mode == mcp.RES_ANY then
            return res
        end
        return (rctx:result(handles[2]))
    end
end

local function route(factory, pools)
    local fgen = mcp.funcgen_new()
    local handles = {}
    for i, p in ipairs(pools) do
        handles[i] = fgen:new_handle(p)
    end
    fgen:ready({ f = factory, a = #handles == 1 and handles[1] or handles })
    return fgen
end

function mcp_config_pools()
    if fail_over then
        mcp.backend_connect_timeout(0.25)
        mcp.backend_read_timeout(0.25)
        mcp.backend_retry_timeout(2)
        mcp.backend_failure_limit(1)
    end
    local pools = { pool("primary", primaries) }
    if #backups > 0 then
        pools[2] = pool("backup", backups)
    end
    return pools
end

function mcp_config_routes(pools)
    mcp.attach(mcp.CMD_ANY_STORAGE, route(#pools == 2 and both or one, pools))
    local reads = route(one, { pools[1] })
    if #pools == 2 and fail_over then
        reads = route(either, pools)
    end
    mcp.attach(mcp.CMD_GET, reads)
    mcp.attach(mcp.CMD_GETS, reads)
    mcp.attach(mcp.CMD_MG, reads)
end
"#;

/// memcached's own proxy.
pub(crate) fn memcached_proxy(
    program: &Path,
    port: u16,
    primaries: &[u16],
    backups: &[u16],
    layout: &Layout,
    files: &Path,
) -> io::Result<Command> {
    let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("local primaries, backups = {{ {} }}, {{ {} }}\n", list(primaries), list(backups));
    let _ = writeln!(text, "local fail_over = {}", layout.fail_over);
    text += ROUTES;
    let config = files.join(format!("{port}.lua"));
    fs::write(&config, text)?;
    let mut command = Command::new(program);
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0"]);
    command.args(["-t", &layout.threads.to_string(), "-c", &(layout.clients + 64).to_string()]);
    command.arg("-o").arg(format!("proxy_config={}", config.display()));
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "root"]);
    }
    Ok(command)
}
