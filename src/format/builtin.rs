//! The models that come with the program: `builtin:tiny-captioner` and `builtin:tiny-reasoner`, folders like any other.
//! Their files are part of the program and are unpacked where caches lie, so that weights are mapped and tools can read
//! them.

use super::save::{replace_folder, write_file};
use crate::error::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// What the name of a built-in model begins with.
pub const BUILTIN: &str = "builtin:";

type File = (&'static str, &'static [u8]);

macro_rules! files {
    ($model:literal: $($name:literal),+) => {
        &[$(($name, include_bytes!(concat!("../../assets/", $model, "/", $name)))),+]
    };
}

const MODELS: [(&str, &[File]); 2] = [
    (
        "tiny-captioner",
        files!("tiny-captioner": "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
            "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"),
    ),
    (
        "tiny-reasoner",
        files!("tiny-reasoner": "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
            "tokenizer.json", "tokenizer_config.json"),
    ),
];

/// One unpacks at a time; other programs do not wait, and find all of a folder or none of it.
static UNPACKING: Mutex<()> = Mutex::new(());

/// The folder of a built-in model, unpacked below `caches`, or where temporary files go if nothing can be written there.
pub(super) fn unpack(name: &str, caches: Option<PathBuf>) -> Result<PathBuf> {
    let Some((_, files)) = MODELS.iter().find(|(model, _)| *model == name) else {
        let there = MODELS.map(|(model, _)| format!("{BUILTIN}{model}")).join(" and ");
        return Err(Error::caller(
            "model",
            format!("{BUILTIN}{name} does not come with this program; {there} do"),
        ));
    };
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in *files {
        hasher.update(name.as_bytes()).update(&bytes.len().to_le_bytes()).update(bytes);
    }
    let folder = format!("{name}-{}", &hasher.finalize().to_hex()[..16]);
    let _one = UNPACKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let below = |root: PathBuf| unpack_to(&root.join("pellucid").join(&folder), files);
    let unpacked = caches.map(below).filter(Result::is_ok);
    unpacked.unwrap_or_else(|| below(std::env::temp_dir()))
}

/// Makes sure that `folder` holds these files as they are here.
fn unpack_to(folder: &Path, files: &[File]) -> Result<PathBuf> {
    let whole =
        || files.iter().all(|(name, bytes)| fs::read(folder.join(name)).is_ok_and(|there| there == *bytes));
    if !whole() {
        let parent = folder.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|cause| Error::file_because(parent, "cannot be made", cause))?;
        let written = replace_folder(folder, |fresh| {
            files.iter().try_for_each(|(name, bytes)| write_file(&fresh.join(name), bytes))
        });
        // Another program may have been faster.
        written.or_else(|refused| if whole() { Ok(()) } else { Err(refused) })?;
    }
    Ok(folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_model_is_unpacked_once_and_mended_if_it_is_not_whole() {
        let home = tempfile::tempdir().unwrap();
        let unpacked = || unpack("tiny-captioner", Some(home.path().to_owned())).unwrap();
        let folder = unpacked();
        assert!(folder.starts_with(home.path()), "{}", folder.display());
        let inode = || fs::metadata(folder.join("config.json")).unwrap().ino();
        let first = inode();
        assert_eq!((unpacked(), inode()), (folder.clone(), first));
        for damage in ["model.safetensors", "config.json"] {
            fs::write(folder.join(damage), b"{").unwrap();
            assert_eq!(unpacked(), folder);
            assert!(fs::metadata(folder.join(damage)).unwrap().len() > 1);
        }
        fs::remove_file(folder.join("tokenizer.json")).unwrap();
        assert!(unpacked().join("tokenizer.json").exists());
        let beside: Vec<_> = fs::read_dir(folder.parent().unwrap()).unwrap().collect();
        assert_eq!(beside.len(), 1, "nothing is left behind");
    }

    #[test]
    fn many_at_once_find_the_same_folder() {
        let home = tempfile::tempdir().unwrap();
        let folders: Vec<PathBuf> = std::thread::scope(|scope| {
            let open = || unpack("tiny-reasoner", Some(home.path().to_owned())).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(folders.iter().all(|folder| folder == &folders[0]));
    }

    #[test]
    fn where_no_cache_can_be_written_temporary_files_do() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        for caches in [None, Some(file)] {
            assert!(unpack("tiny-reasoner", caches).unwrap().starts_with(std::env::temp_dir()));
        }
        let refusal = unpack("tiny-poet", None).unwrap_err().to_string();
        let expected = "builtin:tiny-poet does not come with this program; builtin:tiny-captioner and \
                        builtin:tiny-reasoner do";
        assert!(refusal.contains(expected), "{refusal}");
    }
}
