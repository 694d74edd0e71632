//! `quorate-server check`: what a data directory holds, and whether it is sound; one entry in words.
//!
//! Invariants: nothing is written. A node that runs goes on undisturbed, and its files are read as they are at the moment:
//! what it is writing may look torn, and is reported as such no less.

use std::io::{self, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use quorate_engine::batch::Batch;
use quorate_engine::engine::{Config, Engine};
use quorate_engine::journal::{
    COMMANDS, CONFIGURATION, Conf, Contents, Entry, Inspection, RESET, Refusal, Row, Standing, entries_at,
    inspect, twin, unsound_at,
};
use quorate_protocol::id::{GroupId, Index, Replica};
use quorate_protocol::wire::Wire;

use crate::clock::now;
use crate::journal::{Look, OpenError, Unreadable, is_irreplaceable};

/// Characters of a command that are shown.
const SHOWN: usize = 400;

/// What `quorate-server check` takes.
#[derive(Debug, Clone, Args)]
pub struct CheckFlags {
    /// The data directory.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Show what the journal's entries of this index say.
    #[arg(long, value_name = "INDEX")]
    pub explain: Option<Index>,
    /// Of this group only.
    #[arg(long, value_name = "G", requires = "explain")]
    pub group: Option<u16>,
}

/// Looks at a directory and says what is there; whether it is sound.
///
/// # Errors
/// When it cannot be read, or cannot say whose it is.
pub fn run(flags: &CheckFlags) -> Result<bool, String> {
    let mut out = Vec::new();
    let sound = report(flags, &mut out)?;
    // Nobody may be reading.
    let _ = io::stdout().lock().write_all(&out);
    Ok(sound)
}

pub(crate) fn report(flags: &CheckFlags, out: &mut Vec<u8>) -> Result<bool, String> {
    let shown = flags.dir.display();
    let failed = |error: &dyn std::fmt::Display| format!("data directory {shown}: {error}");
    if !flags.dir.is_dir() {
        return Err(failed(&"there is no such directory; give the --data-dir of a node"));
    }
    let look = Look::at(&flags.dir).map_err(|error| failed(&error))?;
    let unknown = |refusal| OpenError::Refused(flags.dir.clone(), refusal).to_string();
    let founded = quorate_engine::journal::read_meta(&look.contents).map_err(unknown)?;
    if founded.is_none() {
        return Err(failed(&"no node has founded it; give the --data-dir of a node"));
    }
    let found = match flags.explain {
        Some(_) => inspect(&look.contents, &Unreadable::new()),
        None => inspected(&look.contents),
    };
    let found = found.map_err(unknown)?;
    let write = |out: &mut Vec<u8>| -> io::Result<()> {
        if let Some(holder) = &look.holder {
            writeln!(out, "in use by process {holder}: what is being written may look damaged")?;
        }
        match flags.explain {
            Some(index) => explain(&look, &found, index, flags.group, out),
            None => overview(&look, &found, out),
        }
    };
    write(out).map_err(|error| failed(&error))?;
    Ok(found.recovered.damage.is_empty() && found.recovered.lost().next().is_none())
}

/// Goes as far as a start does: what is as it was written may still be nothing that can be loaded.
fn inspected(contents: &Contents) -> Result<Inspection, Refusal> {
    let found = inspect(contents, &Unreadable::new())?;
    let engine = Engine::new(now(), Config::new(0, String::new()), found.recovered.clone());
    if engine.unreadable().is_empty() { Ok(found) } else { inspect(contents, engine.unreadable()) }
}

fn overview(look: &Look, found: &Inspection, out: &mut Vec<u8>) -> io::Result<()> {
    let meta = &found.recovered.meta;
    let (cluster, node, identity) = (meta.cluster.0, meta.node.0, meta.identity.0);
    // What was read is the next start's number.
    let boot = meta.boot.0 - 1;
    writeln!(out, "cluster {cluster:016x}, node {node}, identity {identity:032x}, boot {boot}")?;
    writeln!(out, "partitions {}", meta.partitions)?;
    for (group, row) in &found.recovered.rows {
        let last = found.recovered.entries.get(group).and_then(|log| log.last()).map(|entry| entry.index);
        writeln!(out, "group {}: {}", group.0, row_in_words(row, last))?;
    }
    for (&(group, index), bytes) in &look.contents.snapshots {
        let row = found.recovered.rows.get(&group).filter(|row| row.snapshot.0 == index);
        let named = row.map_or("no row names it".to_owned(), |row| format!("term {}", row.snapshot.1));
        let sound = match (unsound_at(bytes, group, index), &row) {
            (Some(offset), _) => format!("not sound at offset {offset}"),
            (None, Some(row)) if row.standing == Standing::Lost => "as it was written".to_owned(),
            (None, _) => "sound".to_owned(),
        };
        writeln!(out, "snapshot of group {} at {index}: {named}, {} bytes, {sound}", group.0, bytes.len())?;
    }
    for segment in &found.segments {
        let sealed = if segment.sealed { "sealed" } else { "open" };
        let (number, end, size) = (segment.number, segment.end, segment.size);
        let (alive, dead) = (segment.alive, segment.dead);
        writeln!(
            out,
            "segment {number}: {sealed} at {end} of {size} bytes; entries: {alive} bytes alive, {dead} dead"
        )?;
        for (group, (first, last)) in &segment.groups {
            writeln!(out, "  group {}: {first}..={last}", group.0)?;
        }
    }
    for (name, file) in [("meta", &look.contents.meta), ("hardstate", &look.contents.hard)] {
        if let Some(what) = file.as_ref().and_then(|file| imperfection(file)) {
            writeln!(
                out,
                "{name}: {what}; nothing is lost by it, and the next start makes the copies alike"
            )?;
        }
    }
    for damage in &found.recovered.damage {
        writeln!(out, "DAMAGE: {damage}")?;
    }
    let lost: Vec<_> = found.recovered.lost().map(|group| group.0.to_string()).collect();
    if !lost.is_empty() {
        let (n, all, list) = (lost.len(), found.recovered.rows.len(), lost.join(", "));
        let advice = if is_irreplaceable(&found.recovered) {
            "no other node has it, so no start is made of this: bring the files back as they were, or restore the newest \
             backup into a new directory"
        } else {
            "start it among the other nodes, which replace what is lost, and keep this directory until they have"
        };
        writeln!(
            out,
            "LOST: {n} of {all} groups ({list}): what this node acknowledged of them cannot be read any more; {advice}"
        )?;
    } else if found.recovered.damage.is_empty() {
        writeln!(out, "no damage")?;
    }
    Ok(())
}

/// What is not as it should be of a twin that can still be read. A crash may have left it so, or the disk is going bad.
fn imperfection(file: &Bytes) -> Option<&'static str> {
    match &twin::copies(file)[..] {
        [_] => Some("one of its two copies cannot be read"),
        [newer, older] if newer.contents != older.contents => Some("its two copies are not alike"),
        _ => None,
    }
}

fn row_in_words(row: &Row, last: Option<Index>) -> String {
    let standing = match row.standing {
        Standing::Absent => "absent",
        Standing::Whole => "whole",
        Standing::Lost => "lost",
    };
    let incarnation =
        if row.incarnation == u32::MAX { "unknown".to_owned() } else { row.incarnation.to_string() };
    let (term, vote, (snapshot, at)) = (row.hard.term, replica(row.hard.vote), row.snapshot);
    let log = last.map_or("empty".to_owned(), |last| format!("up to {last}"));
    let Conf { index, voters, outgoing, learners, .. } = &row.conf;
    let list = |all: &[Replica]| all.iter().map(|one| replica(*one)).collect::<Vec<_>>().join(" ");
    let mut conf = format!("configuration of {index}: voters [{}]", list(voters));
    for (name, all) in [("outgoing", outgoing), ("learners", learners)] {
        if !all.is_empty() {
            conf += &format!(", {name} [{}]", list(all));
        }
    }
    format!(
        "{standing}, incarnation {incarnation}, term {term}, vote {vote}, snapshot {snapshot} (term {at}), log {log}, {conf}"
    )
}

/// `node.incarnation`.
fn replica(replica: Replica) -> String {
    if replica.node.0 == 0 {
        return "none".to_owned();
    }
    format!("{}.{}", replica.node.0, replica.incarnation)
}

fn explain(
    look: &Look,
    found: &Inspection,
    index: Index,
    group: Option<u16>,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let entries = entries_at(&look.contents, found, index);
    let entries = entries.iter().filter(|(entry, _)| group.is_none_or(|group| entry.group == GroupId(group)));
    let mut none = true;
    for (entry, alive) in entries {
        none = false;
        let alive = if *alive { "" } else { ", not in use" };
        let (group, term, length) = (entry.group.0, entry.term, entry.data.len());
        writeln!(out, "entry {index} of group {group}: term {term}, {length} bytes{alive}")?;
        for line in in_words(entry) {
            let end = line.char_indices().nth(SHOWN).map_or(line.len(), |(at, _)| at);
            let more = if end < line.len() { "…" } else { "" };
            writeln!(out, "  {}{more}", &line[..end])?;
        }
    }
    if none {
        writeln!(out, "no segment holds an entry {index}: it was compacted, or never written here")?;
    }
    Ok(())
}

fn in_words(entry: &Entry) -> Vec<String> {
    match entry.kind {
        COMMANDS if entry.data.is_empty() => vec!["nothing: a new leader's first".to_owned()],
        COMMANDS => match Batch::read(entry.data.clone()) {
            Ok(batch) => {
                let mut lines =
                    vec![format!("group time {}, {} commands", batch.stamp, batch.commands.len())];
                let numbered = (1..).zip(&batch.commands);
                lines.extend(numbered.map(|(n, logged)| {
                    format!("{n}. {:?} by {:?}, {:?}", logged.work, logged.asker, logged.principal)
                }));
                lines
            }
            Err(error) => vec![format!("it cannot be read: {error:?}")],
        },
        CONFIGURATION => {
            let conf = Conf::from_wire(entry.data.clone()).map(|conf| format!("a configuration: {conf:?}"));
            vec![conf.unwrap_or_else(|_| format!("a change of replicas: {:?}", entry.data))]
        }
        RESET => vec!["the log begins anew behind it".to_owned()],
        other => vec![format!("of the unknown kind {other}: {:?}", entry.data)],
    }
}
