//! What a data directory says of itself, before it is opened: nothing is locked, changed or believed for long.

use std::path::Path;

use bytes::Bytes;
use quorate_engine::journal::{Contents, File, Meta, Refusal, read_meta};

/// What a directory was founded as; `None` when it was never founded.
///
/// # Errors
/// When it has been used and does not say, or not to this release.
pub fn founded(dir: &Path) -> Result<Option<Meta>, Refusal> {
    let read = |file: File| std::fs::read(dir.join(file.path())).ok().map(Bytes::from);
    let mut contents = Contents { meta: read(File::Meta), hard: read(File::Hard), ..Contents::default() };
    let journal = std::fs::read_dir(dir.join("journal")).into_iter().flatten().flatten();
    // That there are segments is all that matters.
    if journal.map(|file| file.path()).any(|path| path.extension().is_some_and(|end| end == "seg")) {
        contents.segments.insert(1, Bytes::new());
    }
    Ok(read_meta(&contents)?.map(|(_, meta)| meta))
}
