//! The data plane against model nodes: every order of what can happen, and single stories step by step.

mod control;
mod copier;
mod explore;
mod history;
mod node;
mod races;
mod repair;
mod stories;
mod world;
