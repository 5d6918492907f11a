//! Refilling a node.
