//! What a start does with files of which a part cannot be read: nothing that could not be undone.
//!
//! Invariants:
//! - Where no other node has what is lost, the start is refused and nothing is changed: the cause may pass.
//! - Elsewhere the files that the start has no use for any more go to `DIR/damaged/BOOT/`, and stay there until a start finds
//!   every group whole: only then has the cluster shown that it can do without them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use quorate_engine::journal::{File as Name, Io, Meta, Recovered, Row, Standing};

/// Where the files are.
const ASIDE: &str = "damaged";

/// Whether some group has lost what nobody else has.
#[must_use]
pub fn is_irreplaceable(recovered: &Recovered) -> bool {
    let lost = |row: &&Row| row.standing == Standing::Lost;
    !recovered.damage.is_empty()
        && recovered.rows.values().filter(lost).any(|row| is_alone(row, &recovered.meta))
}

/// Whether a group has no other voter; as long as it has not applied any configuration, that is for the founders to say.
fn is_alone(row: &Row, meta: &Meta) -> bool {
    let nodes: Vec<_> = if row.conf.voters.is_empty() {
        meta.founders.iter().map(|(node, _)| *node).collect()
    } else {
        row.conf.voters.iter().chain(&row.conf.outgoing).map(|voter| voter.node).collect()
    };
    nodes.iter().all(|&node| node == meta.node)
}

/// The place for what this start has no use for.
pub(super) fn place(dir: &Path, recovered: &Recovered) -> PathBuf {
    dir.join(ASIDE).join(recovered.meta.boot.0.to_string())
}

/// Puts the files that would be removed there.
pub(super) fn keep(dir: &Path, place: &Path, removed: &[Io]) -> io::Result<()> {
    for io in removed {
        let Io::Remove { file } = io else { continue };
        let (from, to) = (dir.join(file.path()), place.join(file.path()));
        make(to.parent().unwrap_or(place))?;
        match fs::rename(from, to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Copies the files that a start replaces, as they were.
pub(super) fn copy(dir: &Path, place: &Path) -> io::Result<()> {
    make(place)?;
    for name in [Name::Meta, Name::Hard] {
        let from = dir.join(name.path());
        if from.exists() {
            fs::copy(from, place.join(name.path()))?;
        }
    }
    Ok(())
}

/// Lets go of all of it, if every group is whole.
pub(super) fn let_go(dir: &Path, recovered: &Recovered) -> io::Result<()> {
    if recovered.rows.values().any(|row| row.standing == Standing::Lost) {
        return Ok(());
    }
    match fs::remove_dir_all(dir.join(ASIDE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
