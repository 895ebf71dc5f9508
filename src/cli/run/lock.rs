//! One process at a time in a run's folder: two would mix their lines.

use anyhow::{Context, Result, bail};
use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// What is locked in a folder. The file stays when its run ends; the lock ends with the process, however it ends.
const NAME: &str = ".lock";

/// Locks a folder for as long as the file is open.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(NAME);
    // To be written to: where locks cross a network, no others are exclusive.
    let file = File::options().append(true).create(true).open(&path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "{}: another process is at work there; wait for it to end, or give another run.out",
            folder.display()
        ),
        // Some file systems have no locks. A run is not refused for that.
        Err(TryLockError::Error(cause)) => eprintln!(
            "{}: cannot be locked ({cause}); see to it that no other process uses it",
            folder.display()
        ),
    }
    Ok(file)
}
