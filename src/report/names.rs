//! The names of statistics that are read again, by the commands or by the report itself.

pub const MODE: &str = "mode";
pub const MIRRORED: &str = "mirrored";
/// Begins the names of the sentences that say why not.
pub const OBSTACLE: &str = "obstacle:";
/// Begins what is said of items of which no copy was left, where there were some of late.
pub const LOST_ITEMS: &str = "lost_items:";
/// Behind a server's address, as the three after it.
pub const PLACE: &str = "place";
pub const STATE: &str = "state";
pub const INCARNATION: &str = "incarnation";
/// Of `stats proxy`: what a proxy is, which may be one of several.
pub const ROLE: &str = "proxy:role";
/// `1` or `0`: whether it answers clients.
pub const READY: &str = "proxy:ready";
/// Where the active one listens.
pub const ACTIVE: &str = "proxy:active";
/// What keeps it from acting.
pub const TROUBLE: &str = "proxy:trouble";
/// The names of its pools.
pub const POOLS: &str = "proxy:pools";
