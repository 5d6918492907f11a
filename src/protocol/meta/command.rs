//! A meta command, and those of its flags that decide what it does.

use crate::rules::{Rule, holds};

/// Which command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// `mg`
    Get,
    /// `ms`
    Set,
    /// `md`
    Delete,
    /// `ma`
    Arithmetic,
    /// `me`
    Debug,
}

/// What `ms` or `ma` does, by `M`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// `S`, and any command without a mode.
    Set,
    /// `E`
    Add,
    /// `A`
    Append,
    /// `P`
    Prepend,
    /// `R`
    Replace,
    /// `I` or `+`
    Increment,
    /// `D` or `-`
    Decrement,
}

impl Mode {
    /// As a node is told it.
    pub(in crate::protocol) fn flag(self) -> &'static [u8] {
        match self {
            Mode::Set => b" MS",
            Mode::Add => b" ME",
            Mode::Append => b" MA",
            Mode::Prepend => b" MP",
            Mode::Replace => b" MR",
            Mode::Increment => b" MI",
            Mode::Decrement => b" MD",
        }
    }
}

/// A flag that decides what a command does, or how a node or the client is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Flag {
    /// `b`: the key is written in base64.
    Binary = 1,
    /// `v`
    Value = 1 << 1,
    /// `C`
    Cas = 1 << 2,
    /// `I`
    Stale = 1 << 3,
    /// `T`
    Ttl = 1 << 4,
    /// `N`
    Vivify = 1 << 5,
    /// `R`
    Recache = 1 << 6,
    /// `x`
    Remove = 1 << 7,
    /// `c`
    TellCas = 1 << 8,
    /// `q`
    Quiet = 1 << 9,
}

/// A meta command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    pub verb: Verb,
    pub mode: Mode,
    flags: u16,
}

/// What becomes of the copies when a node has carried the command out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The item has the value, client flags and expiry of the command.
    Stored,
    /// The value was added at its end, or front.
    Joined,
    Deleted,
    /// It has another expiry.
    Touched,
    /// It has another number.
    Counted,
    /// It is marked stale.
    Stale,
    /// The answer does not tell: the item must be read.
    Unclear,
}

impl Meta {
    /// One without flags.
    pub fn new(verb: Verb) -> Meta {
        let mode = if verb == Verb::Arithmetic { Mode::Increment } else { Mode::Set };
        Meta { verb, mode, flags: 0 }
    }

    pub fn with(mut self, flag: Flag) -> Meta {
        self.flags |= flag as u16;
        self
    }

    #[inline(always)]
    pub fn has(self, flag: Flag) -> bool {
        self.flags & flag as u16 != 0
    }

    /// Whether it may change more than who is to recompute a stale item.
    ///
    /// That, a plain `mg` decides too. Only the leader holds stale items.
    pub fn is_write(self) -> bool {
        match self.verb {
            Verb::Get if !holds(Rule::ChangingGetIsAWrite) => false,
            Verb::Get => self.has(Flag::Ttl) || self.has(Flag::Vivify) || self.has(Flag::Recache),
            Verb::Debug => false,
            Verb::Set | Verb::Delete | Verb::Arithmetic => true,
        }
    }

    /// Whether the answer is an item, or a miss.
    pub fn reads(self) -> bool {
        matches!(self.verb, Verb::Get | Verb::Debug)
    }

    /// Whether a second run after the first leaves the same item and gives the same answer.
    pub fn is_repeatable(self) -> bool {
        match self.verb {
            Verb::Get | Verb::Delete | Verb::Debug => true,
            Verb::Set => matches!(self.mode, Mode::Set | Mode::Replace) && !self.has(Flag::Cas),
            Verb::Arithmetic => false,
        }
    }

    /// Whether it stores only where there is nothing, or something else there.
    pub fn adds(self) -> bool {
        match self.verb {
            Verb::Get | Verb::Arithmetic => self.has(Flag::Vivify),
            Verb::Set => match self.mode {
                Mode::Add => true,
                Mode::Append | Mode::Prepend => self.has(Flag::Vivify),
                _ => false,
            },
            Verb::Delete | Verb::Debug => false,
        }
    }

    /// Whether a cas id of 0 stands for any to memcached, and not for none.
    pub fn takes_any_at_zero(self) -> bool {
        self.verb == Verb::Arithmetic || matches!(self.mode, Mode::Append | Mode::Prepend)
    }

    /// What it has done where it has taken effect.
    pub fn change(self) -> Change {
        match (self.verb, self.mode) {
            (Verb::Get | Verb::Debug, _) => Change::Touched,
            // With a cas id that is too old the value may have been stored as a stale one.
            (Verb::Set, _) if self.has(Flag::Stale) && self.has(Flag::Cas) => Change::Unclear,
            (Verb::Set, Mode::Append | Mode::Prepend) => Change::Joined,
            (Verb::Set, _) => Change::Stored,
            (Verb::Delete, _) if self.has(Flag::Stale) => Change::Stale,
            (Verb::Delete, _) if self.has(Flag::Remove) => Change::Unclear,
            (Verb::Delete, _) => Change::Deleted,
            // The exptime is given to the item that was there, which another may have replaced: see
            // `Op::may_have_blanks`.
            (Verb::Arithmetic, _) if self.has(Flag::Ttl) => Change::Unclear,
            (Verb::Arithmetic, _) => Change::Counted,
        }
    }

    pub fn name(self) -> &'static str {
        match self.verb {
            Verb::Get => "mg",
            Verb::Set => "ms",
            Verb::Delete => "md",
            Verb::Arithmetic => "ma",
            Verb::Debug => "me",
        }
    }
}
