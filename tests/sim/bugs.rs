//! Deliberate bugs: each must be seen by a checker within a few seeds, or the checker is worth nothing.
//!
//! They exist in builds of the engine with the feature `faults` only, which no server has.

use clap::ValueEnum;
use quorate_engine::engine::Faults;
use quorate_engine::journal::Options;

use super::plan::Plan;
use super::workload::Profile;

/// One deliberate bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bug {
    /// What waits for the disk does not wait.
    ReplyBeforeDurable,
    /// A record of a segment's former life is taken for one of this life.
    RecycledRecord,
    /// Terms and votes are not read back.
    VoteForgotten,
    /// The token counter stands still.
    TokenReused,
    /// A lock that is held is granted again.
    DoubleGrant,
    /// A shared request overtakes those that wait.
    Overtaking,
    /// Waits that can never end are not refused.
    DeadlockIgnored,
    /// A request of a client session is executed as often as it comes.
    ResendAppliedTwice,
    /// What stands behind a refusal is executed.
    OrderBroken,
    /// Reads do not ask whether the leader still leads.
    StaleReads,
    /// `-TRYAGAIN` for what was proposed.
    DishonestCode,
    /// `-OOM` for what was proposed.
    DishonestOom,
    /// A FLUSHALL is answered and not done.
    LostFlush,
    /// NX, XX and IFVER hold whatever the key is.
    ConditionsIgnored,
    /// A DEL is answered and not done.
    LostDelete,
    /// Of a transaction's commands only the first is done.
    HalfMulti,
    /// A transaction is done though a watched key has changed.
    WatchIgnored,
    /// A PUB is answered and not kept.
    LostMessage,
    /// An ACK is answered and not done.
    LostAck,
    /// A publisher's id is not looked at.
    DedupeIgnored,
    /// An ACK counts whatever delivery it names.
    StaleAck,
    /// A message whose lease ends is gone.
    NoRedelivery,
    /// What lies in a mapped file is taken for what was written.
    BodiesUnchecked,
    /// A snapshot is relied on that is not synced.
    SnapshotUnsynced,
    /// A replica acts on though it has lost what it acknowledged.
    LostActsOn,
    /// A node starts with the founding configuration.
    ConfForgotten,
    /// The session of a removed member ends while its node counts on it.
    ForgottenAtOnce,
    /// A dead letter that comes to another partition twice is taken twice.
    LetterTakenTwice,
    /// SNAPSHOT is answered before the manifest names what was written.
    SavedTooSoon,
    /// A backup is done though another group's letter had not come yet when a group was cut.
    CutTooEarly,
    /// A restored group numbers its letters as if none had come elsewhere.
    LettersNumberedAnew,
    /// A leader's lease lasts longer than the promises behind it.
    LeaseTooLong,
    /// A leader's lease goes on while leadership is handed over.
    LeaseKept,
    /// One of the nodes that hold a line is not told that it is not valid any more.
    MissedInvalidation,
    /// A node says that it has dropped a line, and has not.
    KeptLine,
    /// A lease that has lapsed at its home is renewed.
    LapsedRenewed,
    /// A line is kept that an invalidation has overtaken.
    LateFill,
    /// The line of the writer's own node stays open.
    OwnLineKept,
    /// A key is not closed while it is written.
    LeftOpen,
    /// Leases are granted beyond the home's own.
    BeyondHome,
    /// What a line's owner brings is written whatever the key's version is.
    BroughtBlindly,
    /// An owner acknowledges writes for as long as its lease lasts, and brings them late.
    AbsorbedLate,
    /// An owner says that it has given a line back before it has brought what it acknowledged.
    PurgedUnbrought,
    /// What depends on an owned line does not wait for its owner.
    OwnedReadOpen,
    /// A client is not told that a line has gone of whose value it keeps a copy.
    PushMissed,
    /// A client may keep what it was answered, whether the node holds it or not.
    KeptUnseen,
    /// A node does not tell its clients of the writes that it hears of.
    NewsMissed,
    /// A client that need not be told of its own writes is not told of those that its answer leaves open, either.
    TakenForDone,
    /// A key goes a millisecond before its time.
    EarlyEnd,
    /// Whoever misses a key is to fill it.
    AllLead,
    /// A partition passes over the floor of a lock's new holder.
    FloorIgnored,
    /// A lock is granted before the partitions that compare its tokens know of it; they are told late.
    FloorsNotAwaited,
}

impl Bug {
    /// Makes the run one in which the bug can matter.
    pub fn provoke(self, plan: &mut Plan) {
        match self {
            Self::OrderBroken => {
                plan.refuse_above(3);
                plan.pipeline = 16;
            }
            Self::RecycledRecord | Self::VoteForgotten => {
                plan.crashes = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            Self::DeadlockIgnored | Self::Overtaking => {
                plan.clients = 14;
                plan.fault_every = 0;
                plan.only = Some(Profile::Locks);
            }
            Self::ResendAppliedTwice => {
                plan.disconnects = true;
                plan.crashes = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            Self::SnapshotUnsynced | Self::LostActsOn => plan.lose_much(self == Self::LostActsOn),
            Self::BodiesUnchecked => plan.rot_much(),
            Self::ConfForgotten => plan.change_much(),
            Self::ForgottenAtOnce => Self::provoke_removals(plan),
            Self::FloorIgnored | Self::FloorsNotAwaited => plan.fence_much(),
            Self::SavedTooSoon => plan.saves = true,
            Self::CutTooEarly | Self::LettersNumberedAnew => plan.back_up_letters(),
            Self::StaleReads => {
                plan.partitioned = true;
                plan.pauses = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            Self::LeaseTooLong => {
                plan.partitioned = true;
                plan.pauses = true;
                plan.lossy = true;
                plan.fault_every = plan.fault_every.min(100_000);
            }
            Self::PushMissed | Self::KeptUnseen | Self::NewsMissed => plan.read_much(),
            Self::MissedInvalidation | Self::KeptLine | Self::OwnLineKept | Self::LeftOpen => {
                plan.read_much()
            }
            Self::TakenForDone | Self::EarlyEnd => self.provoke_by_answers(plan),
            Self::LateFill => {
                plan.read_much();
                plan.lossy = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            Self::LapsedRenewed | Self::BeyondHome => {
                plan.read_much();
                (plan.partitioned, plan.pauses, plan.lossy) = (true, true, true);
                plan.fault_every = plan.fault_every.min(150_000);
            }
            Self::BroughtBlindly | Self::AbsorbedLate | Self::PurgedUnbrought | Self::OwnedReadOpen => {
                self.provoke_write_backs(plan);
            }
            Self::LeaseKept => {
                plan.stops = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            Self::LetterTakenTwice => {
                plan.only = Some(Profile::Queues);
                plan.clients = 10;
                plan.partitions = 4;
                plan.crashes = true;
                plan.cuts = true;
                plan.fault_every = plan.fault_every.min(150_000);
            }
            _ => {}
        }
    }

    /// Members are removed while their clients hold locks.
    fn provoke_removals(plan: &mut Plan) {
        plan.change_much();
        (plan.nodes, plan.spares, plan.partitions) = (6, 0, 1);
        plan.clients = 14;
        plan.only = Some(Profile::Locks);
        plan.fault_every = 0;
    }

    /// What is answered is all that it shows in.
    fn provoke_by_answers(self, plan: &mut Plan) {
        plan.read_much();
        plan.fault_every = 0;
        if self == Self::EarlyEnd {
            // Where others have to agree, the millisecond has passed before anybody hears of it.
            (plan.nodes, plan.only) = (1, Some(Profile::Brief));
        } else {
            (plan.nodes, plan.only) = (1, Some(Profile::Doubtful));
        }
    }

    fn provoke_write_backs(self, plan: &mut Plan) {
        plan.write_back_much();
        match self {
            Self::BroughtBlindly => {
                (plan.crashes, plan.partitioned, plan.pauses) = (false, true, true);
                plan.backs = 12;
                plan.fault_every = plan.fault_every.min(100_000);
            }
            Self::AbsorbedLate => {
                plan.crashes = true;
                plan.fault_every = plan.fault_every.min(400_000);
            }
            _ => plan.calm_down(),
        }
    }

    /// Switches the bug on in an engine, if it is one of an engine.
    pub fn put_into_engine(self, faults: &mut Faults) {
        match self {
            Self::ReplyBeforeDurable => faults.reply_before_durable = true,
            Self::TokenReused => faults.locks.token_reused = true,
            Self::DoubleGrant => faults.locks.double_grant = true,
            Self::Overtaking => faults.locks.overtaking = true,
            Self::DeadlockIgnored => faults.locks.deadlock_ignored = true,
            Self::ResendAppliedTwice => faults.resend_applied_twice = true,
            Self::OrderBroken => faults.order_broken_behind_refusal = true,
            Self::StaleReads => faults.stale_reads = true,
            Self::DishonestCode => faults.honest_codes_broken = true,
            Self::LostFlush => faults.store.lost_flush = true,
            Self::DishonestOom => faults.full_lies = true,
            Self::ConditionsIgnored => faults.store.conditions_ignored = true,
            Self::LostDelete => faults.store.lost_delete = true,
            Self::HalfMulti => faults.store.half_multi = true,
            Self::WatchIgnored => faults.store.watch_ignored = true,
            Self::EarlyEnd => faults.store.early_end = true,
            Self::LostMessage => faults.queues.lost_message = true,
            Self::LostAck => faults.queues.lost_ack = true,
            Self::DedupeIgnored => faults.queues.dedupe_ignored = true,
            Self::StaleAck => faults.queues.stale_ack = true,
            Self::NoRedelivery => faults.queues.no_redelivery = true,
            Self::BodiesUnchecked => faults.queues.bodies_unchecked = true,
            Self::SnapshotUnsynced => faults.snapshot_unsynced = true,
            Self::LostActsOn => faults.lost_acts_on = true,
            Self::ConfForgotten => faults.conf_forgotten = true,
            Self::ForgottenAtOnce => faults.forgotten_at_once = true,
            Self::LeaseTooLong => faults.leases.too_long = true,
            Self::LeaseKept => faults.leases.kept_in_transfer = true,
            Self::MissedInvalidation => faults.cache.missed_invalidation = true,
            Self::KeptLine => faults.cache.kept_line = true,
            Self::LapsedRenewed => faults.cache.lapsed_renewed = true,
            Self::LateFill => faults.cache.late_fill = true,
            Self::OwnLineKept => faults.cache.own_line_kept = true,
            Self::LeftOpen => faults.cache.left_open = true,
            Self::BeyondHome => faults.cache.beyond_home = true,
            Self::BroughtBlindly => faults.store.brought_blindly = true,
            Self::AbsorbedLate => faults.cache.absorbed_late = true,
            Self::PurgedUnbrought => faults.cache.purged_unbrought = true,
            Self::OwnedReadOpen => faults.cache.owned_read_open = true,
            Self::NewsMissed => faults.cache.news_missed = true,
            Self::AllLead => faults.cache.all_lead = true,
            Self::FloorIgnored => faults.fences.floor_ignored = true,
            Self::FloorsNotAwaited => faults.locks.floors_not_awaited = true,
            Self::LetterTakenTwice => faults.outbox.taken_twice = true,
            Self::SavedTooSoon => faults.saved_too_soon = true,
            Self::RecycledRecord
            | Self::VoteForgotten
            | Self::PushMissed
            | Self::KeptUnseen
            | Self::CutTooEarly
            | Self::LettersNumberedAnew
            | Self::TakenForDone => {}
        }
    }

    /// Switches the bug on in a journal, if it is one of a journal.
    pub fn put_into_journal(self, options: &mut Options) {
        match self {
            Self::RecycledRecord => options.accept_recycled = true,
            Self::VoteForgotten => options.forget_votes = true,
            _ => {}
        }
    }
}
