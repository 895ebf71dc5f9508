//! Any response against any gold: a verdict, soon.
#![no_main]

use pellucid::task::verify::{Policy, grade};

libfuzzer_sys::fuzz_target!(|texts: (String, String, Vec<String>)| {
    let (response, gold, choices) = texts;
    grade(&response, &gold, None, &choices, &Policy::default());
    grade(&response, &gold, None, &[], &Policy { strict_box: false, ..Policy::default() });
});
