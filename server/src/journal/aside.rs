//! What a start does with files of which a part cannot be read: nothing that could not be undone.
//!
//! Invariants:
//! - Where no other node has what is lost, the start is refused and nothing is changed: the cause may pass.
//! - Elsewhere the files that the start has no use for any more lie in `DIR/damaged/BOOT/`, synced, before anything of the
//!   directory is changed, and under their own names too until the rows say what is lost. So a start that is killed anywhere
//!   leaves the next one the same damage to find, or everything kept.
//! - They stay there until a start finds every group whole: only then has the cluster shown that it can do without them.
//!   A node that could not even say what it held renounces it, and no later start of it can know whether the others have become
//!   whole: what it has put to `DIR/damaged/BOOT.keep/` is removed by hand only, and nothing else is removed as long as it is there.
//!
//! Subtlety: a file lies there as a second name of the same bytes, so it takes no room. What has two names is never written
//! again (`Disk::remove`), but for the seal of a last segment, behind all that it held.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use quorate_engine::journal::{File as Name, Io, Meta, Recovered, Row, Standing};

use super::dir::there;

/// Where the files are.
const ASIDE: &str = "damaged";
/// How the name of a place ends that no start removes.
const BY_HAND: &str = ".keep";

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

/// The place for what this start has no use for. What a start that was killed has put somewhere stays there.
pub(super) fn place(dir: &Path, recovered: &Recovered) -> PathBuf {
    let boot = recovered.meta.boot.0;
    let unknown =
        recovered.rows.values().any(|row| row.standing == Standing::Lost && row.incarnation == u32::MAX);
    let end = if unknown { BY_HAND } else { "" };
    let first = dir.join(ASIDE).join(format!("{boot}{end}"));
    let further = (2..).map(|number: u32| dir.join(ASIDE).join(format!("{boot}-{number}{end}")));
    std::iter::once(first).chain(further).find(|place| !place.exists()).expect("some number is free")
}

/// Keeps what a start is about to change: copies of the files that it replaces, and those that it removes. All of it is
/// on stable storage afterwards.
pub(super) fn keep(dir: &Path, place: &Path, ios: &[Io]) -> io::Result<()> {
    make(place)?;
    for name in [Name::Meta, Name::Hard] {
        let to = place.join(name.path());
        if there(fs::copy(dir.join(name.path()), &to))?.is_some() {
            sync(&to)?;
        }
    }
    for io in ios {
        let Io::Remove { file } = io else { continue };
        let (from, to) = (dir.join(file.path()), place.join(file.path()));
        make(to.parent().unwrap_or(place))?;
        match fs::hard_link(&from, &to) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            // A file system without second names.
            Err(_) => drop(fs::copy(&from, &to)?),
            Ok(()) => {}
        }
        sync(&to)?;
    }
    for inner in ["journal", "snapshots"] {
        there(sync(&place.join(inner)))?;
    }
    [place, &dir.join(ASIDE), dir].into_iter().try_for_each(sync)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Lets go of all of it, if every group is whole and nothing is for somebody else to remove.
pub(super) fn let_go(dir: &Path, recovered: &Recovered) -> io::Result<()> {
    if recovered.rows.values().any(|row| row.standing == Standing::Lost) {
        return Ok(());
    }
    let Some(mut places) = there(fs::read_dir(dir.join(ASIDE)))? else { return Ok(()) };
    if places.any(|place| place.is_ok_and(|place| place.file_name().to_string_lossy().ends_with(BY_HAND))) {
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
