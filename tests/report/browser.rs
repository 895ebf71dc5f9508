//! The report in a real browser: nothing on its console. And TensorBoard itself reading our events.

use super::run;
use pellucid::rl::report;
use pellucid::rl::tensorboard::EventWriter;
use std::path::Path;
use std::process::Command;

/// Lines that a page put on the console; none where there is no browser.
fn console(page: &Path) -> Option<Vec<String>> {
    let browser = std::env::var("CHROMIUM").unwrap_or("chromium".to_owned());
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(&browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .ok()?;
    let (dom, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && dom.contains("</html>"), "{browser} did not read the page: {log}");
    Some(log.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect())
}

#[test]
#[ignore = "needs Debian's chromium, or another by CHROMIUM; .ci/run runs it where there is one"]
fn a_browser_has_nothing_to_complain_about() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&folder).unwrap();
    run::folder(&folder);
    let page = report::write(&folder).unwrap();
    let complaints = console(&page).expect("there is no browser; install chromium or set CHROMIUM");
    assert!(complaints.is_empty(), "{}: {complaints:?}", page.display());

    // It would be heard: the page's own policy forbids what is planted here.
    let planted = folder.join("planted.html");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&planted, text.replace("</body>", "<script>alert(1)</script></body>")).unwrap();
    assert!(!console(&planted).unwrap().is_empty(), "a script that must not run went unnoticed");
}

#[test]
#[ignore = "needs the Python package tensorboard; name its interpreter by PYTHON"]
fn tensorboard_reads_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(folder.path(), 0).unwrap();
    for step in 1..=4 {
        writer.scalars(step, [("reward", 0.25 * step as f64), ("kl", 0.0)]).unwrap();
    }
    writer.text(1, "caption", "red-circle 7 , „ü“ .").unwrap();
    // Taken up again after step 2: what was said of 3 and 4 no longer holds.
    let mut writer = EventWriter::create(folder.path(), 2).unwrap();
    writer.scalars(3, [("reward", 9.0)]).unwrap();
    let script = "import sys\n\
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n\
        events = EventAccumulator(sys.argv[1]).Reload()\n\
        print([(e.step, e.value) for e in events.Scalars('reward')], sorted(events.Tags()['scalars']))\n\
        print([t.tensor_proto.string_val[0].decode() for t in events.Tensors('caption')])\n";
    let python = std::env::var("PYTHON").unwrap_or("python3".to_owned());
    let output = Command::new(python).args(["-c", script]).arg(folder.path()).output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let expected = "[(1, 0.25), (2, 0.5), (3, 9.0)] ['kl', 'reward']\n['red-circle 7 , „ü“ .']\n";
    assert_eq!(said, expected, "{log}");
}
