//! What others have written and a machine may lack: then a test says that it was skipped. Where `CI` is set it fails instead.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether a program can be used; says so if it cannot.
///
/// # Panics
/// When it cannot, and `CI` is set.
pub fn is_there(what: &str, probe: &mut Command) -> bool {
    let there = probe.output().is_ok_and(|output| output.status.success());
    if !there {
        assert!(std::env::var_os("CI").is_none(), "{what} is not installed, and CI must not skip its tests");
        // Not with println!, which is shown of failed tests only.
        let _ = writeln!(std::io::stdout(), "skipped: {what} is not installed");
    }
    there
}

/// A place for what is fetched or compiled once and kept for the next run.
///
/// # Panics
/// When it cannot be made.
#[must_use]
pub fn kept(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("target"),
        PathBuf::from,
    );
    let place = target.join("clients").join(name);
    std::fs::create_dir_all(&place).expect("the target directory can be written");
    place
}
