//! What the tests run: the server's and the command line's binaries, built from this very source.
//!
//! Subtlety: a nested cargo call builds them, once per test process, so that the tests run what users run: without the
//! deliberate bugs that this crate's own build of the engine carries. All are built whichever is wanted: what cargo builds
//! for one alone differs in the features of dependencies, and would be built once more.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The server's binary, built from this very source.
///
/// # Panics
/// When it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("QUORATE_SERVER") {
        Some(other) => other.into(),
        None => build("quorate-server"),
    })
}

/// The command line's binary, likewise.
///
/// # Panics
/// When it cannot be built.
pub fn cli() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("quorate"))
}

fn build(program: &str) -> PathBuf {
    let me = std::env::current_exe().expect("a program has a file");
    let place = me.parent().expect("a file lies somewhere");
    // target/PROFILE/PROGRAM or target/PROFILE/deps/TEST
    let profile = if place.ends_with("deps") { place.parent().expect("the profile") } else { place };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "-p", "quorate-server", "-p", "quorate-client", "--bins"])
        .current_dir(root);
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().is_ok_and(|status| status.success()), "{program} is built");
    profile.join(program)
}
