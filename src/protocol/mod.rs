//! memcached's protocols as bytes: requests from clients, replies from nodes. Pure: no I/O, no clock.
