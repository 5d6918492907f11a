//! The data plane against model nodes: every order of what can happen, and single stories step by
//! step.
//!
//! | rule | protected by |
//! |---|---|
//! | a gate closes when everything is answered | `close`: counted before voiding |
//! | a fault is told before the gate it closes | `give_up_conn`, `doubt`: `fault` first |
//! | answers of a deposed node count for nothing | `void_flights`: `Flight::Void` |
//! | what one node may have executed is not sent to it again | `unpark`: the arms of `Unknown` and `Held` |
//! | no write is acknowledged before its lost follower is recorded | `leader_answered`: `is_void(pair, target)` |
//! | one client's writes keep their order | `begin`: the arm with `parked` |
//! | a token of an earlier term does not win | `node_cas` |
//! | a filling node never computes, and what is dropped is copied again | `mirror_filling`; `follower_answered`: `recopy.push` |
//! | a repair has the key for itself | `begin`: `fence.queue`; `repair`: `waiting_for` |
//! | what did not surely reach both nodes is known to be missed | `miss`, and `begin`: `missed.insert` |
//! | an order ends, and brings nothing back that a client wrote | `park`: `Origin::Control`; `adopt`: `written` |
//! | a repair ends, and not with a difference | `repair_answered`: `repair_broken`; `repair_later`; `void_waiting_repairs` |
//! | what a repair copied counts once it was sent, and what it only read does not | `repair_broken`: `fence.copied` |
//! | a counter that begins again is not counted on by an earlier copy | `leader_decided`: `begins_what_was_gone` |
//! | a connection leads to the memory that the route was made for | `handle_conn_up`: `check` |
//! | what failed before a node came back deposes it no more | `give_up_conn`: `conn.life`; `Cluster::worker_saw` |
//! | "not there" counts only with the marker read behind it | `needs_proof`: `absent`; `send_op`: `marker_due` |
//! | what is answered behind such an answer waits with it | `needs_proof`: `unproven_writes` |
//! | an answer without its proof is void, or right if the same memory leads | `void_answers`; `unpark`: `Executed`; `op.decided` |
//! | a node that moves bytes is not late, one that drips is | `tell_lateness`: `owed_since`; `is_stuck_with`; `answered` |
//! | one client's turn ends | `feed_requests`: `turn_is_over`; `flush_all` resumes once |
//! | what a client was told to be gone stays gone under the next leader | `begin`: `looks_first`; `proved`, `leader_answered`: `tell_gone`; `looked`: `forget` |
//! | … and nothing that was written since is hidden by that | `note_brief_write`, `may_outlast` |
//! | a proved write is told of behind its own mark, or of none | `finish_behind_mark`; `mark_answered` |
//! | a connection that is refused is no loss while another stands, and nothing overtakes by that | `doubt_for`: `stand_in_for`; `end_stand_ins`: `owes_nothing` |
//! | nobody waits for ever | `ask_markers_again`, `ask_marks_again`, `retry_parked`, `expire_parked` |

mod beliefs;
mod binary;
mod bursts;
mod control;
mod copier;
mod explore;
mod flushes;
mod gone;
mod history;
mod inside;
mod large;
mod marks;
mod meta;
mod node;
mod orders;
mod pieces;
mod races;
mod repair;
mod shell;
mod silent;
mod spoken;
mod stand_ins;
mod starved;
mod stories;
mod strangers;
mod turns;
mod unread;
mod waits;
mod world;
