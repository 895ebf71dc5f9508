//! Where a model lies: a folder, a hub id in the offline hub cache, or in the program itself.
//!
//! The cache is the one every Hugging Face tool shares: `models--org--name/snapshots/<commit>`, with branch
//! names under `refs`. Nothing is ever downloaded; an id that is not there is answered with where it was
//! looked for.

use super::builtin::{BUILTIN, unpack};
use crate::error::{Error, Result};
use std::path::{Component, Path, PathBuf};

const OP: &str = "model";
const DEFAULT_REVISION: &str = "main";

/// The folder of `model`: a path, `builtin:name`, or `org/name` in the hub cache, perhaps with `@revision`.
pub(crate) fn resolve(model: &str) -> Result<PathBuf> {
    match model.strip_prefix(BUILTIN) {
        Some(name) => unpack(name, caches(environment)),
        None => resolve_in(model, hub_cache().as_deref()),
    }
}

/// Where the offline hub cache is, whether or not it exists; none if the environment names no home for it.
pub fn hub_cache() -> Option<PathBuf> {
    cache_folder(environment)
}

/// A variable as a path.
fn environment(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Where the caches of programs are, given the environment.
fn caches(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
}

/// Where the hub cache is, given the environment.
fn cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    let home = || caches(&variable).map(|caches| caches.join("huggingface"));
    set("HF_HUB_CACHE").or_else(|| set("HF_HOME").or_else(home).map(|home| home.join("hub")))
}

fn resolve_in(model: &str, cache: Option<&Path>) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Ok(folder.to_owned());
    }
    if folder.exists() {
        return Err(Error::caller(
            OP,
            format!("{model} is a file, expected the folder of a model or a hub id"),
        ));
    }
    let (id, revision) = model.split_once('@').unwrap_or((model, DEFAULT_REVISION));
    if !is_hub_id(id) || !is_relative_name(revision) {
        return Err(Error::caller(
            OP,
            format!("{model}: no such folder, and not a hub id (org/name[@revision])"),
        ));
    }
    let Some(cache) = cache else {
        let what = format!("{model}: no such folder, and no hub cache: set HF_HUB_CACHE, HF_HOME or HOME");
        return Err(Error::caller(OP, what));
    };
    let repository = cache.join(format!("models--{}", id.replace('/', "--")));
    if !repository.is_dir() {
        let what = format!(
            "{id} is neither a folder here nor in the hub cache: {} does not exist; fetch it with \
             `hf download {id}`, point HF_HUB_CACHE or HF_HOME at the cache that has it, or name a folder",
            repository.display()
        );
        return Err(Error::caller(OP, what));
    }
    snapshot(&repository, id, revision)
}

/// The snapshot of `revision`: a branch or tag recorded under `refs`, or a commit.
fn snapshot(repository: &Path, id: &str, revision: &str) -> Result<PathBuf> {
    let reference = repository.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    if !is_relative_name(&commit) {
        return Err(Error::file(reference, "expected the name of a commit"));
    }
    let snapshot = repository.join("snapshots").join(&commit);
    if snapshot.is_dir() {
        return Ok(snapshot);
    }
    let mut there: Vec<String> = std::fs::read_dir(repository.join("snapshots"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    there.sort();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    let what = format!(
        "{id}@{revision} is not in the hub cache: {} does not exist (snapshots there: {there}); fetch it with \
         `hf download {id} --revision {revision}`",
        snapshot.display()
    );
    Err(Error::caller(OP, what))
}

/// `name` or `org/name`, as the hub allows them.
fn is_hub_id(id: &str) -> bool {
    let part = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && part.bytes().all(plain) && !part.starts_with(['.', '-']) && !part.contains("--")
    };
    match id.split_once('/') {
        Some((organisation, name)) => part(organisation) && part(name),
        None => part(id),
    }
}

/// A path that cannot lead out of the folder it is joined to.
fn is_relative_name(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let with = |pairs: &'static [(&str, &str)]| {
            let find = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            cache_folder(find).map(|path| path.display().to_string())
        };
        assert_eq!(with(&[("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b")]).as_deref(), Some("/a"));
        assert_eq!(with(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/b")]).as_deref(), Some("/b/hub"));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/c")]).as_deref(), Some("/c/huggingface/hub"));
        assert_eq!(with(&[("HOME", "/d")]).as_deref(), Some("/d/.cache/huggingface/hub"));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn ids_resolve_by_branch_tag_and_commit() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        for commit in ["abc", "def"] {
            fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        fs::create_dir_all(repository.join("refs/pr")).unwrap();
        fs::write(repository.join("refs/main"), "abc\n").unwrap();
        fs::write(repository.join("refs/pr/1"), "def").unwrap();
        fs::write(repository.join("refs/evil"), "../../..").unwrap();

        let find = |model| resolve_in(model, Some(cache.path()));
        assert_eq!(find("org/name").unwrap(), repository.join("snapshots/abc"));
        assert_eq!(find("org/name@pr/1").unwrap(), repository.join("snapshots/def"));
        assert_eq!(find("org/name@def").unwrap(), repository.join("snapshots/def"));
        let folder = cache.path().to_str().unwrap();
        assert_eq!(find(folder).unwrap(), cache.path());

        let complaint = |model| find(model).unwrap_err().to_string();
        assert!(complaint("org/name@v2").contains("snapshots there: abc, def"));
        assert!(complaint("org/name@evil").contains("expected the name of a commit"));
        assert!(complaint("org/name@../x").contains("not a hub id"));
        assert!(complaint("../org/name").contains("not a hub id"));
        let absent = complaint("org/other");
        assert!(absent.contains("models--org--other does not exist"), "{absent}");
        assert!(absent.contains("hf download org/other"), "{absent}");
    }
}
