//! Writes copies of the server's read view with one mistake each, for the tests that show that mistakes are seen.
//!
//! Charter: takes `server/src/view.rs`, replaces a few words, and leaves the result where `interleaved.rs` includes it. Where the
//! words are not found any more, it says so in a constant, and the test fails with the mistake's name.

use std::path::Path;
use std::{env, fs};

/// Name of the module, and what is replaced by what.
const MISTAKES: [(&str, &[(&str, &str)]); 3] = [
    // The end of a new lease is written before its generation.
    (
        "end_first",
        &[("lease.until.store(0, Ordering::Release)", "lease.until.store(until, Ordering::Release)")],
    ),
    // The generation is read before the end.
    (
        "generation_first",
        &[
            (
                "let until = lease.until.load(Ordering::Acquire);",
                "let generation = lease.generation.load(Ordering::Acquire);",
            ),
            (
                "let valid = lease.generation.load(Ordering::Acquire) == line.generation;",
                "let until = lease.until.load(Ordering::Acquire); let valid = generation == line.generation;",
            ),
        ],
    ),
    // The end is read in no order with the generation.
    ("unordered_end", &[("lease.until.load(Ordering::Acquire)", "lease.until.load(Ordering::Relaxed)")]),
];

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo says where we are");
    let view = Path::new(&root).join("../server/src/view.rs");
    println!("cargo:rerun-if-changed={}", view.display());
    println!("cargo:rerun-if-changed=build.rs");
    let text = fs::read_to_string(&view).expect("the view is there");
    // Included files cannot have a charter, and the tests inside are the server's.
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: Vec<&str> = text.lines().filter(|line| !line.starts_with("//!")).collect();
    let code = code.join("\n");
    let mut modules = String::new();
    for (name, words) in MISTAKES {
        let found = words.iter().all(|(right, _)| code.matches(right).count() == 1);
        let wrong = words.iter().fold(code.clone(), |code, (right, wrong)| code.replace(right, wrong));
        modules += &format!(
            "/// A view with a mistake.\npub mod {name} {{\n/// Whether the mistake could be made.\npub const MADE: bool = {found};\n{wrong}\n}}\n"
        );
    }
    let out = env::var("OUT_DIR").expect("cargo says where to write");
    fs::write(Path::new(&out).join("mistaken_views.rs"), modules).expect("it can be written");
}
