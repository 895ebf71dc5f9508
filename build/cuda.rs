//! Feature `cuda`: nvcc makes one fatbin of each `kernels/*.cu`, and a table through which the library embeds them.

use super::{files, nvcc::Nvcc};
use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Overrides [`DEFAULT`]: numbers between commas, as in `80,90a,120`.
const VARIABLE: &str = "PELLUCID_CUDA_ARCHS";
const DEFAULT: &str = "80,90a";

/// Files whose name ends so use what this architecture alone has.
const TWIN: (&str, &str) = ("_sm90", "90a");

/// As on the emulator, a product and a sum are two roundings unless a kernel writes an fma: so that kernels which
/// compute the same thing give the same bits, however the compiler arranges them.
const FLAGS: [&str; 5] = ["-fatbin", "-std=c++17", "-O3", "-fmad=false", "-Ikernels"];

pub(super) fn compile() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    println!("cargo:rerun-if-env-changed=NVCC_CCBIN");
    let nvcc = Nvcc::find();
    let built = architectures(&env::var(VARIABLE).unwrap_or(DEFAULT.into()));
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names it"));
    let mut jobs = Vec::new();
    let mut entries = String::new();
    for source in files("kernels", "cu") {
        let name = source.file_stem().expect("has one").to_str().expect("is unicode").to_owned();
        let wanted = |a: &&String| !name.ends_with(TWIN.0) || a.as_str() == TWIN.1;
        let targets: Vec<&String> = built.iter().filter(wanted).collect();
        if targets.is_empty() {
            continue;
        }
        let image = folder.join(&name).with_extension("fatbin");
        writeln!(entries, "    ({name:?}, &Aligned(*include_bytes!({image:?}))),").expect("strings grow");
        jobs.push(command(&nvcc.path, &source, &image, &targets));
    }
    run(jobs);
    let (major, minor) = nvcc.release;
    let table = format!(
        "/// The release of nvcc that compiled the kernels.\npub const NVCC: (u32, u32) = ({major}, {minor});\n\
         /// What they were compiled for.\npub const ARCHITECTURES: &[&str] = &{built:?};\n\
         static IMAGES: &[(&str, &Aligned<[u8]>)] = &[\n{entries}];\n"
    );
    fs::write(folder.join("fatbins.rs"), table).expect("OUT_DIR is writable");
}

fn architectures(list: &str) -> Vec<String> {
    let form = |a: &&str| {
        let digits = a.trim_end_matches(['a', 'f']);
        digits.len() >= 2 && digits.bytes().all(|b| b.is_ascii_digit()) && a.len() - digits.len() <= 1
    };
    let parts: Vec<&str> = list.split(',').map(|a| a.trim().trim_start_matches("sm_")).collect();
    if let Some(odd) = parts.iter().find(|a| !form(a)) {
        super::stop(&format!(
            "{VARIABLE}: {odd:?} is no architecture; give numbers between commas, as in {DEFAULT}"
        ));
    }
    parts.into_iter().map(str::to_owned).collect()
}

fn command(nvcc: &Path, source: &Path, image: &Path, targets: &[&String]) -> Command {
    let mut command = Command::new(nvcc);
    command.args(FLAGS).arg(source).arg("-o").arg(image);
    for target in targets {
        command.arg("-gencode").arg(format!("arch=compute_{target},code=sm_{target}"));
    }
    command
}

/// Runs all, as many at a time as there are processors, and shows what every failed one said.
fn run(jobs: Vec<Command>) {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let jobs: Vec<Mutex<Command>> = jobs.into_iter().map(Mutex::new).collect();
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut job = job.lock().expect("each is run once");
            match job.output() {
                Ok(Output { status, .. }) if status.success() => {}
                Ok(output) => {
                    let said =
                        [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
                    failures.lock().expect("pushing cannot fail").push(format!("{job:?}\n{}", said.concat()));
                }
                Err(error) => failures.lock().expect("pushing cannot fail").push(format!("{job:?}: {error}")),
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().expect("pushing cannot fail");
    if !failures.is_empty() {
        super::stop(&format!("nvcc refuses a kernel:\n{}", failures.join("\n")));
    }
}
