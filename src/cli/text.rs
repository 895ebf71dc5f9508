//! Numbers and tables as people read them.

use std::fmt;

/// Bytes in binary units: `5.8 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    scaled(count as f64, 1024.0, &["bytes", "KiB", "MiB", "GiB", "TiB"])
}

/// A count in decimal units: `494.0 M`.
pub(crate) fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "k", "M", "B", "T"])
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let steps = units.len() - 1;
    let power = (0..steps).find(|&p| value < 999.95 * base.powi(p as i32)).unwrap_or(steps);
    let digits = usize::from(power > 0);
    format!("{:.digits$} {}", value / base.powi(power as i32), units[power]).trim_end().to_owned()
}

/// Lines of `name  value`, continued under the value where there are several.
pub(crate) fn row(f: &mut fmt::Formatter<'_>, name: &str, values: &[impl AsRef<str>]) -> fmt::Result {
    for (i, value) in values.iter().enumerate() {
        writeln!(f, "{:<11}{}", if i == 0 { name } else { "" }, value.as_ref())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_carry_their_unit() {
        assert_eq!([bytes(0), bytes(999), bytes(1023)], ["0 bytes", "999 bytes", "1.0 KiB"]);
        assert_eq!([count(7), count(999), count(494_032_768)], ["7", "999", "494.0 M"]);
        assert_eq!([bytes(6 << 30), bytes(1 << 60)], ["6.0 GiB", "1048576.0 TiB"]);
    }
}
