//! `datetime.strftime`, for `strftime_now`.

use std::fmt::Write as _;

use minijinja::{Error, ErrorKind};

/// `datetime.strftime` in the C locale, in UTC, of a time in seconds since 1970.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let weekday = (days + 4) % 7;
    let day_of_year = days - days_before(year) + 1;
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[weekday as usize];
    let hour_of_half_day = (hour + 11) % 12 + 1;
    let half = if hour < 12 { "AM" } else { "PM" };
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = rest.next();
        // glibc's `%-d`: no padding.
        let (bare, directive) = if directive == Some('-') { (true, rest.next()) } else { (false, directive) };
        let mut number = |value: u64, width: usize| {
            _ = if bare { write!(out, "{value}") } else { write!(out, "{value:0width$}") };
        };
        match directive {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('H') => number(hour, 2),
            Some('I') => number(hour_of_half_day, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(day_of_year, 3),
            Some('u') => number((weekday + 6) % 7 + 1, 1),
            Some('w') => number(weekday, 1),
            Some('f') => number(0, 6),
            Some('s') => number(seconds, 1),
            Some('e') if bare => number(day, 1),
            Some('e') => _ = write!(out, "{day:2}"),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(half),
            Some('F') => _ = write!(out, "{year:04}-{month:02}-{day:02}"),
            Some('T' | 'X') => _ = write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('R') => _ = write!(out, "{hour:02}:{minute:02}"),
            Some('D' | 'x') => _ = write!(out, "{month:02}/{day:02}/{:02}", year % 100),
            Some('c') => {
                let (day_name, month_name) = (&day_name[..3], &month_name[..3]);
                _ = write!(out, "{day_name} {month_name} {day:2} {hour:02}:{minute:02}:{second:02} {year}");
            }
            // A naive datetime has no zone: Python prints nothing.
            Some('z' | 'Z') => {}
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            other => {
                let shown = other.map_or("%".to_owned(), |directive| format!("%{directive}"));
                let detail = format!("strftime_now: unknown directive `{shown}` in `{format}`");
                return Err(Error::new(ErrorKind::InvalidOperation, detail));
            }
        }
    }
    Ok(out)
}

/// Days from 1970 to the first of January of `year`.
fn days_before(year: u64) -> u64 {
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let leap = year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let february = if leap { 29 } else { 28 };
    let mut left = days - days_before(year);
    for (month, length) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30].into_iter().enumerate() {
        if left < length {
            return (year, month as u64 + 1, left + 1);
        }
        left -= length;
    }
    (year, 12, left + 1)
}
