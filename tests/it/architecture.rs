//! The rules of the architecture that can be read off the sources: who may use whom, where SQL,
//! libvirt and processes may be, how long a file may be, that every noun is in every layer.

#![expect(clippy::expect_used, reason = "a source that cannot be read fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of code that a file may have, tests and comments not counted.
const MAX_LINES: usize = 700;

/// The layers of the controller from the top down. A module may use its own layer's ground (itself)
/// and whatever lies below.
const LAYERS: &[&[&str]] = &[
    &["main"],
    &["app"],
    &["callbacks"],
    &["backup", "bootstrap", "check", "handover", "api"],
    &["reconcile"],
    &["services"],
    &["workflow"],
    &["bus", "messages"],
    &["agent_client", "db", "deps", "placement", "ring", "specs"],
    &["auth", "clock", "config", "cx", "log", "metrics", "privileges", "settings", "systemd", "thread"],
];

/// The configuration is made of the limits of what it configures.
const EXEMPT: &[(&str, &str)] = &[("config", "bus"), ("config", "db"), ("config", "agent_client")];

/// Nouns of the public API that are in every layer of the controller.
const NOUNS: &[&str] = &[
    "account",
    "cluster",
    "controller",
    "event",
    "host",
    "image",
    "instance_type",
    "job",
    "network",
    "setting",
    "storage",
    "vm",
    "volume",
    "zone",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_path_buf()
}

/// Every Rust source below a folder: its path from the workspace's root, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).expect("a readable source")));
            }
        }
    }
    found.sort();
    found
}

fn all_sources() -> Vec<(String, String)> {
    [
        "shared/src",
        "shared/trace/src",
        "controller/src",
        "controller/cli/src",
        "agent/src",
        "tests/src",
        "tests/it",
        "tests/sim/src",
    ]
    .iter()
    .flat_map(|folder| sources(folder))
    .collect()
}

/// The part of a source before its tests, without comments.
fn code(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    before_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Every path `crate::a::b` that a source uses, also those inside of braces: (a, b).
fn crate_paths(code: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(inner) = rest.strip_prefix('{') {
            for part in split_braces(inner) {
                found.push(two_words(part.trim()));
            }
        } else {
            found.push(two_words(rest));
        }
    }
    found
}

/// The parts between commas of the braces that begin before `text`, not looking into inner braces.
fn split_braces(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&text[from..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts
}

fn two_words(path: &str) -> (String, Option<String>) {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let first = word(path);
    let second = path[first.len()..].strip_prefix("::").map(word).filter(|w| !w.is_empty());
    (first, second)
}

fn fail_on(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The module of the controller that a source belongs to: `api`, `bus`, …
fn module_of(path: &str) -> &str {
    let inside = path.trim_start_matches("controller/src/");
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs")
}

#[test]
fn the_controllers_modules_use_only_what_lies_below() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut broken = Vec::new();
    for (path, text) in sources("controller/src") {
        let module = module_of(&path);
        if module == "lib" || is_test(&path) {
            continue;
        }
        let Some(mine) = layer(module) else {
            broken.push(format!("{path}: the module {module} is in no layer"));
            continue;
        };
        for (used, _) in crate_paths(&code(&text)) {
            match layer(&used) {
                _ if used == module || EXEMPT.contains(&(module, used.as_str())) => {}
                Some(other) if other < mine => broken.push(format!("{path} uses {used}, which lies above it")),
                Some(_) => {}
                // Macros and what lib.rs itself exports.
                None if used.is_empty() || used == "Result" || used == "Error" => {}
                None => broken.push(format!("{path} uses {used}, which is in no layer")),
            }
        }
    }
    fail_on("dependencies point down", &broken);
}

#[test]
fn no_service_uses_another_services_module() {
    let mut broken = Vec::new();
    for (path, text) in sources("controller/src/services") {
        let inside = path.trim_start_matches("controller/src/services/");
        let Some((service, _)) = inside.split_once('/') else { continue };
        let code = code(&text);
        for (module, second) in crate_paths(&code) {
            if module == "services" && second.as_deref().is_some_and(|s| s != service && NOUNS.contains(&s)) {
                broken.push(format!("{path} uses services::{}", second.unwrap_or_default()));
            }
        }
        for noun in NOUNS.iter().filter(|noun| **noun != service) {
            let depth = inside.matches('/').count();
            let sideways =
                format!("{}{noun}::", "super::".repeat(depth + usize::from(!inside.ends_with("/mod.rs")) - 1 + 1));
            if code.contains(&format!(" {sideways}")) {
                broken.push(format!("{path} uses {sideways}"));
            }
        }
    }
    fail_on("services talk only through the bus", &broken);
}

#[test]
fn sql_is_only_in_the_database_modules() {
    let mut broken = Vec::new();
    for (path, text) in all_sources() {
        let allowed = path.starts_with("controller/src/db/") || path.starts_with("tests/") || is_test(&path);
        if !allowed && code(&text).contains("sqlx::") {
            broken.push(path);
        }
    }
    fail_on("SQL text is only in controller/src/db", &broken);
}

#[test]
fn libvirt_is_only_in_its_module() {
    let mut broken = Vec::new();
    for (path, text) in all_sources() {
        let code = code(&text);
        let uses = ["virt::", "virt_sys::"].iter().any(|name| {
            code.match_indices(name).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
        });
        if uses && !path.starts_with("agent/src/libvirt/") && path != "tests/it/architecture.rs" {
            broken.push(path);
        }
    }
    fail_on("libvirt is only in agent/src/libvirt", &broken);
}

#[test]
fn processes_are_started_only_in_cmd() {
    let mut broken = Vec::new();
    for (path, text) in all_sources() {
        let starts = code(&text).contains("Command::new(");
        let clap_or_cmd = path.ends_with("/cmd.rs")
            || path.starts_with("controller/cli/src/")
            || path.starts_with("tests/it/architecture");
        if starts && !clap_or_cmd {
            broken.push(path);
        }
    }
    fail_on("processes are started only through cmd.rs", &broken);
}

#[test]
fn every_file_says_what_it_owns_and_is_short_enough_to_read() {
    let mut broken = Vec::new();
    for (path, text) in all_sources() {
        if !text.starts_with("//!") {
            broken.push(format!("{path} does not open with //!"));
        }
        let lines = code(&text).lines().filter(|line| !line.trim().is_empty()).count();
        if lines > MAX_LINES {
            broken.push(format!("{path} has {lines} lines of code: split it by verb"));
        }
    }
    fail_on("files say what they own, in at most 700 lines", &broken);
}

#[test]
fn every_noun_has_its_place_in_every_layer() {
    let layers = [
        ("shared/src/api", &[][..]),
        ("controller/src/messages", &[]),
        ("controller/src/db", &[]),
        ("controller/src/services", &[]),
        ("controller/src/api", &[]),
    ];
    let mut missing = Vec::new();
    for (folder, exempt) in layers {
        for noun in NOUNS.iter().filter(|noun| !exempt.contains(*noun)) {
            let base = root().join(folder);
            let places = [base.join(format!("{noun}.rs")), base.join(noun).join("mod.rs"), base.join(noun)];
            if !places.iter().any(|place| place.exists()) {
                missing.push(format!("{folder}/{noun}.rs"));
            }
        }
    }
    fail_on("one noun, one name, in every layer", &missing);
}

#[test]
fn every_direct_dependency_is_explained() {
    let page = root().join("docs/dependencies.md");
    let text = fs::read_to_string(&page).expect("docs/dependencies.md, which says why we use what we use");
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).expect("the workspace").parse().expect("valid TOML");
    let dependencies = manifest["workspace"]["dependencies"].as_table().expect("a table of dependencies");
    let unexplained: Vec<_> = dependencies
        .keys()
        .filter(|name| !name.starts_with("kring-") && !text.contains(&format!("`{name}`")))
        .cloned()
        .collect();
    fail_on("docs/dependencies.md says why, for each", &unexplained);
}

#[test]
fn every_version_is_in_the_workspace() {
    let mut broken = Vec::new();
    for krate in ["shared", "shared/trace", "controller", "controller/cli", "agent", "tests", "tests/sim"] {
        let text = fs::read_to_string(root().join(krate).join("Cargo.toml")).expect("a manifest");
        let manifest: toml::Table = text.parse().expect("valid TOML");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
            for (name, value) in table {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    broken.push(format!("{krate}/Cargo.toml: {name}"));
                }
            }
        }
    }
    fail_on("versions are in the root Cargo.toml alone", &broken);
}

#[test]
fn the_reader_of_these_rules_can_read() {
    let text = "use crate::db::{self, Tx};\nuse crate::{bus::Bus, cx::Cx};\nlet x = crate::services::vm::create();\nuse mycrate::a;";
    let found: BTreeMap<_, _> = crate_paths(text).into_iter().collect();
    let expected = [("bus", Some("Bus")), ("cx", Some("Cx")), ("db", None), ("services", Some("vm"))];
    let expected = expected.map(|(a, b)| (a.to_string(), b.map(str::to_string)));
    assert_eq!(found, BTreeMap::from(expected));
    assert_eq!(module_of("controller/src/api/vm.rs"), "api");
    assert_eq!(module_of("controller/src/cx.rs"), "cx");
    assert!(Path::new(&root()).join("Cargo.toml").exists());
}
