//! Reads of a group: answered from the applied state, once everything is applied that was committed when they arrived.
//!
//! Within the leader's lease nobody else can have committed anything, so its own commit index is the one to wait for.
//! Without a lease a quorum is asked in a round.
//!
//! Source: Ongaro, "Consensus: Bridging Theory and Practice", 2014, §6.4.

use alloc::vec::Vec;
use quorate_protocol::id::Index;
use quorate_protocol::op::Op;
use quorate_protocol::peer::{Verdict, Work};
use quorate_protocol::reply::Reply;

use super::{Group, READ_RETRY, Read, Round};

/// How long letters are kept for a backup: longer than a node takes to begin the snapshots of all its groups, if it has
/// not very much. Who is late is found out (see `backup::cut_too_early`). Microseconds.
const KEEP_LETTERS: u64 = 120_000_000;

impl Group {
    /// Until when this node or another relies on nobody else leading, by this node's clock; 0 if nobody does.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.lease.max(self.closing.relied_on_until())
    }

    pub(super) fn renew_lease(&mut self, now: u64) {
        let counts = self.clock.is_some() && self.applied_term == self.term;
        self.lease = if counts { self.consensus.take_lease(now) } else { 0 };
    }

    pub(super) fn ask_read_round(&mut self, now: u64) {
        if now < self.lease && !self.rounds.is_empty() {
            self.answer_rounds_in_lease(now);
        }
        if self.reads.is_empty() {
            return;
        }
        let reads = core::mem::take(&mut self.reads);
        #[cfg(feature = "faults")]
        if self.faults.stale_reads {
            self.ready_reads.entry(0).or_default().extend(reads);
            return self.answer_reads(now);
        }
        if now < self.lease {
            return self.read_in_lease(now, reads);
        }
        self.start_round(now, self.consensus.last_index(), reads);
    }

    /// What was asked without a lease is answered before what is asked within it: a connection's reads are in order.
    fn answer_rounds_in_lease(&mut self, now: u64) {
        let commit = self.consensus.commit();
        for round in core::mem::take(&mut self.rounds).into_values() {
            for read in round.reads {
                let at = if read.behind { commit.max(round.floor) } else { commit };
                self.ready_reads.entry(at).or_default().push(read);
            }
        }
        self.answer_reads(now);
    }

    fn read_in_lease(&mut self, now: u64, reads: Vec<Read>) {
        let (commit, last) = (self.consensus.commit(), self.consensus.last_index());
        for read in reads {
            let at = if read.behind { last } else { commit };
            self.ready_reads.entry(at).or_default().push(read);
        }
        self.answer_reads(now);
    }

    fn start_round(&mut self, now: u64, floor: Index, reads: Vec<Read>) {
        let context = self.next_context;
        self.next_context += 1;
        self.consensus.read_index(context);
        self.rounds.insert(context, Round { asked: now, floor, reads });
    }

    /// Asks again when raft may have dropped or lost the newest round. The rounds before it stay: each is
    /// answered by its own answer or by any later one, so a slow network is waited for.
    pub(super) fn retry_reads(&mut self, now: u64) {
        let Some((_, last)) = self.rounds.last_key_value() else { return };
        if now >= last.asked + READ_RETRY {
            self.start_round(now, last.floor, Vec::new());
        }
    }

    pub(super) fn answer_reads(&mut self, now: u64) {
        while let Some(first) = self.ready_reads.first_entry() {
            if *first.key() > self.applied {
                break;
            }
            let reads = first.remove();
            let epoch = self.epoch();
            for mut read in reads {
                read.work.set_epoch(epoch);
                if read.recalled {
                    self.recalled_answered((read.asker.conn.node, read.asker.conn.counter));
                }
                self.has_looked(&read.work);
                let Some(read) = self.wait_for_fill(now, read) else { continue };
                let reply = match &read.work {
                    Work::SeeIndex => {
                        self.saved_at = Some(now);
                        Reply::int(self.applied)
                    }
                    Work::Op(Op::CacheInfo(key)) => self.cache_info(now, key),
                    work => self.state.read(self.time, work),
                };
                let grant = self.grant_for(now, &read);
                self.tell_answer(&read.asker, Verdict::Reply(reply), grant);
            }
        }
    }

    /// Until when letters that have arrived elsewhere are kept here all the same: a backup is being made, and their
    /// partitions may have been cut before they came.
    #[must_use]
    pub fn keeps_letters_until(&self) -> u64 {
        self.saved_at.map_or(0, |at| at + KEEP_LETTERS)
    }

    /// Takes answered rounds: what holds for a round holds for all that were asked before it.
    pub(super) fn rounds_answered(&mut self, answered: Vec<(u64, Index)>) {
        for (context, index) in answered {
            let later = self.rounds.split_off(&(context + 1));
            for round in core::mem::replace(&mut self.rounds, later).into_values() {
                for read in round.reads {
                    let at = if read.behind { index.max(round.floor) } else { index };
                    self.ready_reads.entry(at).or_default().push(read);
                }
            }
        }
    }
}
