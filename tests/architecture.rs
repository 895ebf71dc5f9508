//! Holds the repository to its own rules, so that a review need not.
//!
//! * The order of `pub mod` lines in `src/lib.rs` is the architecture: a module uses only those above it.
//! * `unsafe` stays in the files listed in [`UNSAFE_FILES`], each with its reason.
//! * A source file stays short enough to hold in the head.
//! * Nothing large, binary or peculiar to one machine is committed, and documents name files that are there.
//!
//! Each rule is a function from text to complaints, and each is shown a planted violation at the end.

use std::{collections::HashMap, fs, path::Path};

/// Files that may say `allow(unsafe_code)`, and why they must.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("src/backend/cpu/avx2.rs", "vector instructions, behind a proof that the processor has them"),
    ("src/backend/cpu/avx512.rs", "vector instructions, behind a proof that the processor has them"),
    ("src/backend/cpu/pool.rs", "lends threads that live longer the work of one that waits for them"),
    (
        "src/backend/cpu/tile.rs",
        "gives threads rectangles of one matrix, whose rows are not slices of their own",
    ),
    ("src/backend/gpu/driver/mod.rs", "calls the driver of a device, whose work happens elsewhere"),
    ("src/backend/gpu/emulator.rs", "drives the emulated device, which is C++"),
    ("src/format/map.rs", "a memory map is sound only while nobody changes the file"),
    ("src/prompt/image/vectorised.rs", "calls loops compiled for AVX2, having asked the processor"),
];

/// Lines a file under `src/` may have; at 400 think of splitting, beyond this the test asks for it.
const LONGEST_SOURCE: usize = 600;

/// Bytes a committed file may have, fixtures and assets aside.
const LARGEST_FILE: usize = 512 << 10;

/// Bytes a fixture or asset may have.
const LARGEST_FIXTURE: usize = 4 << 20;

/// Where files that are not text may live.
const BINARY_FOLDERS: [&str; 3] = ["tests/golden/", "assets/", "fuzz/seeds/"];

/// Starts of absolute paths that only exist on somebody's machine, written so that this file passes.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/"), concat!("/", "Users/")];

struct File {
    path: String,
    bytes: Vec<u8>,
}

impl File {
    fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok()
    }
}

#[test]
fn modules_use_only_what_stands_above_them() {
    let files = committed();
    let text = |path: &str| files.iter().find(|f| f.path == path).and_then(File::text).expect("is there");
    let column = Column::read(text("src/lib.rs"), text("src/main.rs"));
    assert!(column.modules.len() > 3, "src/lib.rs declares its modules as `pub mod name;` lines");
    accept(sources(&files, "src/").flat_map(|(path, text)| column.complaints(path, text)));
}

#[test]
fn unsafe_code_stays_behind_its_fence() {
    let files = committed();
    accept(unsafe_complaints(sources(&files, "").collect(), UNSAFE_FILES));
    let manifest = files.iter().find(|f| f.path == "Cargo.toml").and_then(File::text).expect("is there");
    for lint in ["unsafe_code = \"deny\"", "undocumented_unsafe_blocks = \"deny\""] {
        assert!(manifest.contains(lint), "Cargo.toml: [lints] must keep `{lint}`");
    }
}

#[test]
fn source_files_fit_in_the_head() {
    let files = committed();
    accept(sources(&files, "src/").filter_map(|(path, text)| length_complaint(path, text)));
}

#[test]
fn nothing_large_binary_or_local_is_committed() {
    accept(committed().iter().flat_map(file_complaints));
}

#[test]
fn documents_name_files_that_are_there() {
    let files = committed();
    let exists = |path: &str| {
        let inside = format!("{}/", path.trim_end_matches('/'));
        files.iter().any(|file| file.path == path || file.path.starts_with(&inside))
    };
    let documents = files.iter().filter(|file| !file.path.contains('/') && file.path.ends_with(".md"));
    accept(documents.flat_map(|file| {
        let absent = paths_named(file.text().expect("is text")).filter(|(_, path)| !exists(path));
        absent.map(|(line, path)| format!("{}:{line}: names {path}, which is not there", file.path))
    }));
}

/// The paths a document names in backticks, with their lines.
fn paths_named(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let ours = |path: &&str| {
        ["src/", "tests/", "benches/", "examples/", "fuzz/", ".ci/"].iter().any(|f| path.starts_with(f))
    };
    text.lines().enumerate().flat_map(move |(i, line)| {
        line.split('`').skip(1).step_by(2).filter(ours).map(move |path| (i + 1, path))
    })
}

/// The modules of `lib.rs` in order, what the crate root re-exports from them, and the binary's own modules.
struct Column {
    modules: Vec<String>,
    reexports: HashMap<String, String>,
    binary: Vec<String>,
}

impl Column {
    fn read(library: &str, binary: &str) -> Self {
        let library_code = code_only(library);
        let tokens = tokens(&library_code);
        let mut reexports = HashMap::new();
        for (i, &(_, token)) in tokens.iter().enumerate() {
            if token == "use" && tokens.get(i + 2).is_some_and(|t| t.1 == "::") {
                let module = tokens[i + 1].1.to_owned();
                reexports.extend(names_at(&tokens, i + 3).into_iter().map(|name| (name, module.clone())));
            }
        }
        Column { modules: declared(&library_code), reexports, binary: declared(&code_only(binary)) }
    }

    /// Steps upward in one file of `src/`, one line each.
    fn complaints(&self, path: &str, text: &str) -> Vec<String> {
        let inside = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let own = inside.split('/').next().unwrap_or_default();
        if matches!(own, "lib" | "main") || self.binary.iter().any(|m| m == own) {
            return Vec::new(); // the root, and the program that stands below the whole column
        }
        let rank = |name: &str| self.modules.iter().position(|m| m == name);
        let Some(own_rank) = rank(own) else {
            return vec![format!("{path}:1: {own} is not declared in lib.rs")];
        };
        let depth = inside.split('/').count();
        let code = code_only(text);
        root_names(&tokens(&code), depth)
            .into_iter()
            .filter_map(|(line, name)| {
                let module = self.reexports.get(&name).unwrap_or(&name);
                match rank(module) {
                    None => {
                        Some(format!("{path}:{line}: {own} uses crate::{name}, which lib.rs does not have"))
                    }
                    Some(r) if r > own_rank => {
                        Some(format!("{path}:{line}: {own} uses {module}, which stands below it in lib.rs"))
                    }
                    Some(_) => None,
                }
            })
            .collect()
    }
}

/// Modules declared as `mod name;` in stripped code, in order.
fn declared(code: &str) -> Vec<String> {
    let tokens = tokens(code);
    tokens.windows(3).filter(|w| w[0].1 == "mod" && w[2].1 == ";").map(|w| w[1].1.to_owned()).collect()
}

/// Every name reached from the crate root, by `crate::…` or by enough `super::`s, with its line. `depth` is how
/// deep the file's own module lies: 1 for `src/tensor.rs`.
fn root_names(tokens: &[(usize, &str)], depth: usize) -> Vec<(usize, String)> {
    let token = |i: usize| tokens.get(i).map_or("", |t| t.1);
    let mut found = Vec::new();
    let mut braces = Vec::new(); // for each open brace, whether it opened an inline module
    for (i, &(line, this)) in tokens.iter().enumerate() {
        match this {
            "{" => braces.push(i >= 2 && token(i - 2) == "mod"),
            "}" => drop(braces.pop()),
            "crate" if token(i + 1) == "::" => {
                found.extend(names_at(tokens, i + 2).into_iter().map(|name| (line, name)));
            }
            "super" if i < 2 || token(i - 2) != "super" => {
                let supers = (0..).take_while(|k| token(i + 2 * k) == "super").count();
                let above = depth + braces.iter().filter(|&&module| module).count();
                if supers >= above {
                    let names = names_at(tokens, i + 2 * supers);
                    found.extend(names.into_iter().map(|name| (line, name)));
                }
            }
            _ => {}
        }
    }
    found
}

/// The first segments of the path or the `{…}` group that starts at token `i`.
fn names_at(tokens: &[(usize, &str)], i: usize) -> Vec<String> {
    if tokens.get(i).is_none_or(|t| t.1 != "{") {
        return tokens.get(i).map(|t| t.1.to_owned()).into_iter().collect();
    }
    let (mut depth, mut names) = (0, Vec::new());
    for pair in tokens[i..].windows(2) {
        match pair[0].1 {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(pair[0].1, "{" | ",") && pair[1].1 != "}" {
            names.push(pair[1].1.to_owned());
        }
    }
    names
}

/// Identifiers, `::` and single other characters of stripped code, with their lines.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, mut rest) in code.lines().enumerate() {
        while let Some(first) = rest.chars().next() {
            let length = match first {
                c if c.is_alphanumeric() || c == '_' => {
                    rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
                }
                ':' if rest.starts_with("::") => 2,
                c => c.len_utf8(),
            };
            if !first.is_whitespace() {
                found.push((number + 1, &rest[..length]));
            }
            rest = &rest[length..];
        }
    }
    found
}

/// The text with comments, strings and characters blanked, line by line in place.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let follows_name = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest),
            'r' if !follows_name && rest[1..].starts_with(['"', '#']) => raw_string(rest),
            '\'' => character(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            code.extend(rest[..skipped].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[skipped..];
        }
    }
    code
}

/// Length of the (nesting) block comment at the start of `rest`.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut i) = (0, 0);
    while i < rest.len() {
        match &rest.as_bytes()[i..] {
            [b'/', b'*', ..] => (depth, i) = (depth + 1, i + 2),
            [b'*', b'/', ..] => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// Length of the string literal at the start of `rest`.
fn quoted(rest: &str) -> usize {
    let mut escaped = true; // the opening quote does not close
    for (i, byte) in rest.bytes().enumerate() {
        match byte {
            b'"' if !escaped => return i + 1,
            b'\\' if !escaped => escaped = true,
            _ => escaped = false,
        }
    }
    rest.len()
}

/// Length of the raw string at the start of `rest`, 0 if it is something else (`r#type`).
fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].bytes().take_while(|&b| b == b'#').count();
    if rest.as_bytes().get(1 + hashes) != Some(&b'"') {
        return 0;
    }
    let close = format!("\"{}", "#".repeat(hashes));
    let body = hashes + 2;
    rest[body..].find(&close).map_or(rest.len(), |end| body + end + close.len())
}

/// Length of the character literal at the start of `rest`, 0 for a lifetime.
fn character(rest: &str) -> usize {
    if rest[1..].starts_with('\\') {
        return rest[3..].find('\'').map_or(rest.len(), |end| end + 4);
    }
    let mut chars = rest.char_indices().skip(2);
    chars.next().map_or(0, |(i, c)| if c == '\'' { i + 1 } else { 0 })
}

/// Files that open the fence without being listed, and listed files that no longer need to be.
fn unsafe_complaints(files: Vec<(&str, &str)>, listed: &[(&str, &str)]) -> Vec<String> {
    let opens = |text: &str| {
        let code: String = code_only(text).split_whitespace().collect();
        code.contains("allow(unsafe_code") || code.contains("expect(unsafe_code")
    };
    let open: Vec<&str> = files.iter().filter(|(_, text)| opens(text)).map(|(path, _)| *path).collect();
    let unlisted = open.iter().filter(|path| !listed.iter().any(|(l, _)| l == *path));
    let stale = listed.iter().filter(|(path, _)| !open.contains(path));
    unlisted
        .map(|path| format!("{path}: allows unsafe code; write it safely, or argue for it in UNSAFE_FILES"))
        .chain(stale.map(|(path, _)| format!("{path}: has no unsafe code; take it off UNSAFE_FILES")))
        .collect()
}

fn length_complaint(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LONGEST_SOURCE).then(|| {
        format!("{path}: {lines} lines, at most {LONGEST_SOURCE}: split it where it has two concepts")
    })
}

fn file_complaints(file: &File) -> Vec<String> {
    let path = &file.path;
    let fixture = BINARY_FOLDERS.iter().any(|folder| path.starts_with(folder));
    let (size, limit) = (file.bytes.len(), if fixture { LARGEST_FIXTURE } else { LARGEST_FILE });
    let mut complaints = Vec::new();
    if size > limit {
        complaints.push(format!("{path}: {size} bytes, at most {limit}"));
    }
    match file.text() {
        None if !fixture => {
            complaints.push(format!("{path}: not text; such files live in {}", BINARY_FOLDERS.join(", ")));
        }
        None => {}
        Some(text) => complaints.extend(text.lines().enumerate().flat_map(|(i, line)| {
            let local = MACHINE_PATHS.iter().find(|local| line.contains(**local));
            local.map(|local| format!("{path}:{}: names {local}…, which other machines lack", i + 1))
        })),
    }
    complaints
}

/// Every file of the repository that git would carry: build outputs and hidden names but `.ci` left out.
fn committed() -> Vec<File> {
    fn walk(folder: &Path, root: &Path, files: &mut Vec<File>) {
        for entry in fs::read_dir(folder).expect("the repository can be listed") {
            let entry = entry.expect("the repository can be listed");
            let name = entry.file_name().into_string().expect("names are unicode");
            let path = entry.path();
            let ignored = ["target", "__pycache__", "corpus", "artifacts"].contains(&name.as_str());
            let hidden = name.starts_with('.') && !matches!(name.as_str(), ".ci" | ".gitignore");
            if hidden || ignored {
                continue;
            }
            if path.is_file() {
                let relative = path.strip_prefix(root).expect("walked from the root");
                let path_text = relative.to_str().expect("names are unicode").replace('\\', "/");
                files.push(File { path: path_text, bytes: fs::read(&path).expect("is readable") });
            } else if path.is_dir() {
                walk(&path, root, files);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    walk(root, root, &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The Rust files under a folder.
fn sources<'a>(files: &'a [File], folder: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let rust = files.iter().filter(move |f| f.path.starts_with(folder) && f.path.ends_with(".rs"));
    rust.map(|f| (f.path.as_str(), f.text().expect("source is UTF-8")))
}

#[track_caller]
fn accept(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

mod planted {
    use super::*;

    fn column() -> Column {
        let library = "pub mod error;\npub mod tensor;\npub mod format;\npub mod engine;\npub use engine::{Engine, Plan};";
        Column::read(library, "mod cli;\nfn main() {}")
    }

    #[test]
    fn a_step_upward_is_named_with_file_and_line() {
        let text = "use crate::{\n    error::Error,\n    engine::Plan,\n};\n";
        assert_eq!(
            column().complaints("src/format/weights.rs", text),
            ["src/format/weights.rs:1: format uses engine, which stands below it in lib.rs"]
        );
        for text in [
            "fn f() -> crate::engine::Plan { todo() }",
            "use crate::{error::{Error, Result}, Engine};",
            "mod tests { use super::super::super::engine::Plan; }",
            "use super::super::{engine::Plan};",
        ] {
            assert_eq!(column().complaints("src/format/weights.rs", text).len(), 1, "{text}");
        }
        assert_eq!(column().complaints("src/format/weights.rs", "use crate::nowhere;").len(), 1);
        assert_eq!(column().complaints("src/stray.rs", "").len(), 1);
    }

    #[test]
    fn steps_downward_and_words_in_prose_are_fine() {
        let text = r##"
            //! Like `crate::engine`.
            use crate::{error::{Error, Result}, tensor::Tensor};
            /* crate::engine /* nested */ crate::engine */
            const S: &str = "crate::engine \" crate::engine";
            const R: &str = r#"crate::engine " crate::engine"#;
            const C: (char, char) = ('"', '\'');
            fn f<'a>(x: &'a str) -> &'a str { x }
            mod tests { use super::*; use super::super::sibling; }
        "##;
        assert_eq!(column().complaints("src/format/weights.rs", text), Vec::<String>::new());
        assert!(column().complaints("src/engine.rs", "use crate::format;").is_empty());
        assert!(column().complaints("src/cli/mod.rs", "use pellucid::engine; use crate::cli;").is_empty());
    }

    #[test]
    fn the_fence_has_no_holes_and_no_idle_gates() {
        let inside = [("src/a.rs", "#![allow(\n    unsafe_code\n)]"), ("src/b.rs", "// allow(unsafe_code)")];
        assert_eq!(unsafe_complaints(inside.to_vec(), &[("src/a.rs", "reason")]), Vec::<String>::new());
        assert_eq!(unsafe_complaints(inside.to_vec(), &[]).len(), 1);
        assert_eq!(unsafe_complaints(inside.to_vec(), &[("src/a.rs", ""), ("src/b.rs", "")]).len(), 1);
    }

    #[test]
    fn paths_are_found_in_backticks_alone() {
        let text = "See `src/lib.rs`, src/prose.rs and `cargo test`,\nor `tests/golden/` and `.ci/run`.";
        let found: Vec<_> = paths_named(text).collect();
        assert_eq!(found, [(1, "src/lib.rs"), (2, "tests/golden/"), (2, ".ci/run")]);
    }

    #[test]
    fn long_large_binary_and_local_files_are_refused() {
        assert!(length_complaint("src/a.rs", &"\n".repeat(LONGEST_SOURCE + 1)).is_some());
        assert!(length_complaint("src/a.rs", &"\n".repeat(LONGEST_SOURCE)).is_none());
        let complaints =
            |path: &str, bytes: Vec<u8>| file_complaints(&File { path: path.into(), bytes }).len();
        assert_eq!(complaints("notes.txt", vec![b'a'; LARGEST_FILE + 1]), 1);
        assert_eq!(complaints("tests/golden/a.bin", vec![0xff; LARGEST_FILE + 1]), 0);
        assert_eq!(complaints("tests/golden/a.bin", vec![0xff; LARGEST_FIXTURE + 1]), 1);
        assert_eq!(complaints("src/a.bin", vec![0xff]), 1);
        for local in MACHINE_PATHS {
            assert_eq!(complaints("run.sh", format!("fine\nls {local}x").into_bytes()), 1);
        }
    }
}
