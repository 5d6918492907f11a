//! The limit of open files, raised to what the settings need.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use thiserror::Error;

use crate::config::{Plan, Settings};

/// Descriptors beside clients, nodes and threads: standard streams, log, pid file, temporary files,
/// and refusing clients.
const RESERVE: u64 = 128;
/// The admin listener, or the admin socket, and what it lets in.
const OPERATORS: u64 = 40;
/// Per worker thread: its runtime, its handles of the listening sockets, its ring.
const PER_THREAD: u64 = 12;
/// Per pool beside the first: the runtimes of its control plane and its timekeeper, temporary
/// files.
const PER_POOL: u64 = 16;
/// Per node, beside the connections that `-i` keeps: probe, control, and those of a resync.
const CONTROL_PER_NODE: u64 = 16;

/// Fewer clients than this are no service, whatever was asked for.
const FEWEST_CLIENTS: u64 = 16;

/// Why the limit of open files is too low.
#[derive(Debug, Error)]
pub enum LimitError {
    /// The servers alone take everything that the hard limit allows.
    #[error(
        "for -n {clients} and the servers ({servers}) it takes {needed} open files, but the hard limit of this process is {hard}, \
         which leaves nothing for clients; raise it (ulimit -Hn, or LimitNOFILE= in a systemd unit) or use fewer servers"
    )]
    TooLow {
        /// `-n`.
        clients: u64,
        servers: usize,
        /// All descriptors needed.
        needed: u64,
        /// `RLIMIT_NOFILE`'s hard limit.
        hard: u64,
    },
    /// The system refused for another reason.
    #[error("cannot raise the limit of open files to {needed}: {cause}")]
    System {
        /// All descriptors needed.
        needed: u64,
        /// What the system said.
        cause: nix::Error,
    },
}

/// What came of raising the limit of open files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileLimit {
    /// Descriptors that the settings may need at once.
    pub needed: u64,
    /// Descriptors allowed now.
    pub allowed: u64,
    /// Clients that `-n` asks for, all pools together.
    pub asked: usize,
    /// Of these, those that fit: less where the system allows no more.
    pub clients: usize,
}

/// Descriptors that these settings may need at once.
fn files_needed(plan: &Plan) -> u64 {
    let process = &plan.process;
    let operators = OPERATORS * (u64::from(process.admin.is_some()) + u64::from(process.admin_socket.is_some()));
    let more_pools = PER_POOL * (plan.pools.len() as u64).saturating_sub(1);
    plan.pools.iter().map(files_of_pool).sum::<u64>() + more_pools + operators + RESERVE
}

fn files_of_pool(settings: &Settings) -> u64 {
    let nodes = (settings.primaries.len() + settings.backups.len()) as u64;
    // Twice: a connection that timed out is kept and drained while its successor already works.
    let per_node = 2 * settings.node_connections as u64 + CONTROL_PER_NODE;
    settings.max_clients as u64 + nodes * per_node + settings.threads as u64 * PER_THREAD + settings.listen.len() as u64
}

/// Raises this process's limit of open files to what the settings need; never lowers it.
///
/// Where the system allows less, the number of clients gives way: a proxy that takes 19,000 clients
/// of the 51,200 asked for is of more use than none, as long as it says so.
///
/// # Errors
///
/// Not even a few clients fit; the message holds the numbers.
pub fn raise_file_limit(plan: &Plan) -> Result<FileLimit, LimitError> {
    let needed = files_needed(plan);
    let asked: usize = plan.pools.iter().map(|settings| settings.max_clients).sum();
    let system = |cause| LimitError::System { needed, cause };
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system)?;
    if soft >= needed {
        return Ok(FileLimit { needed, allowed: soft, asked, clients: asked });
    }
    let wanted = setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed));
    match wanted {
        Ok(()) => return Ok(FileLimit { needed, allowed: needed, asked, clients: asked }),
        // Root may raise the hard limit too, but not over the kernel's (fs.nr_open), and not in
        // every container.
        Err(_) if hard < needed => {}
        Err(cause) => return Err(system(cause)),
    }
    let clients = asked as u64;
    let fits = hard.saturating_sub(needed - clients);
    if fits < FEWEST_CLIENTS.min(clients) {
        let servers = plan.pools.iter().map(|settings| settings.primaries.len() + settings.backups.len()).sum();
        return Err(LimitError::TooLow { clients, servers, needed, hard });
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(system)?;
    Ok(FileLimit { needed, allowed: hard, asked, clients: fits as usize })
}

impl FileLimit {
    /// Of this many clients that a pool asked for: as many as are allowed, or its part of them.
    pub fn share(&self, max_clients: usize) -> usize {
        if self.clients >= self.asked {
            return max_clients;
        }
        // At least one for each pool; the reserve has room for it.
        ((max_clients as u128 * self.clients as u128 / self.asked as u128) as usize).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommandLine, Host};

    #[test]
    fn each_pool_needs_files_of_its_own() {
        let host = Host { variables: Vec::new(), ..Host::this() };
        let parsed = CommandLine::parse(["resilver", "-s", "a:1", "-n", "100"], &host);
        let Ok(CommandLine::Run(mut plan)) = parsed else { panic!("{parsed:?}") };
        let (alone, pool) = (files_needed(&plan), plan.pools[0].clone());
        plan.pools.push(pool.clone());
        assert_eq!(files_needed(&plan) - alone, files_of_pool(&pool) + PER_POOL);
    }

    #[test]
    fn where_files_are_few_each_pool_gives_way_alike() {
        let limit = |asked, clients| FileLimit { needed: 0, allowed: 0, asked, clients };
        assert_eq!([1, 4096].map(|asked| limit(4097, 4097).share(asked)), [1, 4096]);
        assert_eq!(limit(51_200, 19_000).share(51_200), 19_000, "a pool that is alone");
        assert_eq!([3000, 1000, 1].map(|asked| limit(4001, 400).share(asked)), [299, 99, 1]);
    }
}
