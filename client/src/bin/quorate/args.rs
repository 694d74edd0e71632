//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use bytes::Bytes;
use clap::{Parser, Subcommand, ValueEnum};
use quorate_protocol::limits::{DURATION_MAX, LOCK_TTL};

use crate::trouble::Trouble;

/// Talks to a Quorate cluster: `quorate SET key value` sends any command (`quorate help` lists them), `quorate` alone
/// asks for one after the other.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, disable_help_subcommand = true, after_help = AFTER)]
pub(crate) struct Args {
    /// Client ports of nodes; the first that answers is used.
    #[arg(
        short,
        long,
        global = true,
        env = "QUORATE_SERVER",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        default_value = "127.0.0.1:7411"
    )]
    pub(crate) server: Vec<String>,
    /// How answers are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// What is to be done; without it, commands are read from the terminal or from standard input.
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

const AFTER: &str = "\
Any other COMMAND is sent as it stands; `quorate -- STATUS` sends one that has a meaning of its own above.
Exit codes: 0 done, 1 refused by the cluster, 2 wrong usage, 3 in doubt, 69 no node answers, 73 the lock was not \
granted in time, 75 the lock was lost, 130 interrupted.";

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people, as nc shows it.
    Text,
    /// One JSON value a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show every node and every group, as the nodes themselves see it.
    Status,
    /// List the nodes of the cluster.
    Members,
    /// Change who belongs to the cluster.
    Member {
        /// What is to change.
        #[command(subcommand)]
        change: Change,
    },
    /// Save the whole cluster to a file, or make a new cluster out of one; alone, have a node write its snapshots.
    Snapshot {
        /// What is to be done.
        #[command(subcommand)]
        what: Option<Snapshot>,
    },
    /// Run a program while a lock is held: quorate lock NAME -- PROGRAM ARGS…
    Lock(LockArgs),
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Save every group of the cluster, as it is now, to one file; nobody is held up.
    Save {
        /// The file; it must not exist.
        file: PathBuf,
    },
    /// Make of such a file the data directory of a node of a new cluster (runs quorate-server restore).
    #[command(disable_help_flag = true)]
    Restore {
        /// FILE --data-dir DIR --node-id N --initial-cluster ID=HOST:PEERPORT,...; see --help.
        #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Change {
    /// Make a node a member; start it with --join and an empty data directory.
    Add {
        /// Its node id.
        id: String,
        /// Where the other nodes connect to it.
        #[arg(value_name = "HOST:PEERPORT")]
        address: String,
        /// Wait until it has its share, and show how far that is.
        #[arg(long)]
        wait: bool,
    },
    /// Have a node give its share away; it stays a member.
    Drain(Whom),
    /// Have a node give its share away, and forget it then.
    Remove(Whom),
    /// Have a node keep its share that was to be drained or removed.
    Cancel(Whom),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Whom {
    /// Its node id.
    pub(crate) id: String,
    /// Wait until the replicas have moved, and show how far they are.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LockArgs {
    /// The lock.
    pub(crate) name: OsString,
    /// Its lease in milliseconds; it is renewed as long as the program runs.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=DURATION_MAX))]
    pub(crate) ttl: Option<u64>,
    /// How many milliseconds to wait for it; without it, it is only tried.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(0..=DURATION_MAX))]
    pub(crate) wait: Option<u64>,
    /// The owner's name; by default one that nobody else has.
    #[arg(long, value_name = "ID")]
    pub(crate) owner: Option<OsString>,
    /// Words of the command LOCK, if no program is to be run.
    #[arg(value_name = "OPTION")]
    words: Vec<OsString>,
    /// What to run. It finds the fencing token in QUORATE_TOKEN.
    #[arg(last = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

impl LockArgs {
    /// The lease.
    pub(crate) fn ttl(&self) -> u64 {
        self.ttl.unwrap_or(LOCK_TTL)
    }

    /// The command LOCK, for a line without a program.
    pub(crate) fn as_command(&self) -> Result<Vec<Bytes>, Trouble> {
        if self.ttl.is_some() || self.wait.is_some() || self.owner.is_some() {
            let text = "say what to run while the lock is held: quorate lock NAME [--ttl MS] -- PROGRAM; the command \
                        LOCK takes its options without dashes";
            return Err(Trouble::usage(text));
        }
        let words = [OsString::from("LOCK"), self.name.clone()].into_iter();
        Ok(bytes(words.chain(self.words.iter().cloned())))
    }

    /// What contradicts itself in a line with a program.
    pub(crate) fn check(&self) -> Result<(), Trouble> {
        if self.words.is_empty() {
            return Ok(());
        }
        Err(Trouble::usage(
            "with a program, options are --owner, --ttl and --wait: quorate lock NAME --ttl MS -- PROGRAM",
        ))
    }
}

/// The command SNAPSHOT, for what is not ours.
pub(crate) fn snapshot_command(what: Option<Snapshot>) -> Vec<Bytes> {
    let more = if let Some(Snapshot::Other(words)) = what { words } else { Vec::new() };
    bytes([OsString::from("SNAPSHOT")].into_iter().chain(more))
}

/// Words as they are sent: any bytes.
pub(crate) fn bytes(words: impl IntoIterator<Item = OsString>) -> Vec<Bytes> {
    words.into_iter().map(|word| Bytes::from(word.into_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Args {
        Args::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn words(line: &str) -> Vec<Bytes> {
        match parsed(line).verb {
            Some(Verb::Other(words)) => bytes(words),
            Some(Verb::Lock(lock)) => lock.as_command().expect("the command LOCK"),
            Some(Verb::Snapshot { what }) => snapshot_command(what),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn what_is_not_ours_is_passed_on_whole() {
        assert_eq!(words("quorate SET k -v --x"), ["SET", "k", "-v", "--x"]);
        assert_eq!(words("quorate -- SET k v"), ["SET", "k", "v"]);
        assert_eq!(words("quorate -- status"), ["status"]);
        assert_eq!(words("quorate STATUS"), ["STATUS"]);
        assert_eq!(words("quorate help lock"), ["help", "lock"]);
        assert_eq!(words("quorate -s a:1,b:2 get k"), ["get", "k"]);
        assert_eq!(words("quorate lock a OWNER me TTL 5"), ["LOCK", "a", "OWNER", "me", "TTL", "5"]);
        assert_eq!(words("quorate snapshot"), ["SNAPSHOT"]);
        assert_eq!(words("quorate snapshot read 1 2 3"), ["SNAPSHOT", "read", "1", "2", "3"]);
        let Some(Verb::Snapshot { what: Some(Snapshot::Restore { words }) }) =
            parsed("quorate snapshot restore --data-dir d f --help").verb
        else {
            panic!("restore is ours")
        };
        assert_eq!(words, ["--data-dir", "d", "f", "--help"]);
        assert_eq!(parsed("quorate -s a:1,b:2 get k").server, ["a:1", "b:2"]);
    }

    #[test]
    fn a_program_stands_behind_two_dashes_with_whatever_it_takes() {
        let Some(Verb::Lock(lock)) = parsed("quorate lock a --ttl 500 --wait 7 -- sh -c true --wait").verb
        else {
            panic!("lock is ours")
        };
        assert_eq!((lock.ttl(), lock.wait, lock.program.len()), (500, Some(7), 4));
        assert!(lock.check().is_ok());
        let Some(Verb::Lock(lock)) = parsed("quorate lock a OWNER me -- true").verb else {
            panic!("lock is ours")
        };
        assert!(lock.check().is_err());
        let Some(Verb::Lock(lock)) = parsed("quorate lock a --ttl 500").verb else { panic!("lock is ours") };
        assert!(lock.as_command().is_err());
        assert!(matches!(parsed("quorate status -o json").verb, Some(Verb::Status)));
    }
}
