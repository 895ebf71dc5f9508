//! How long a server asks to be left alone: seconds, milliseconds as some say it, or until a date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};
use ureq::http::{HeaderMap, header};

/// The pause a reply asks for, if it asks for one that is no odd number and not over yet.
pub(super) fn pause_asked(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1e3).or_else(|| number("retry-after"));
    let pause = match seconds {
        Some(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        None => {
            let until = moment(text(header::RETRY_AFTER.as_str())?)?;
            // By the server's own clock, where it says what that shows.
            let now = text(header::DATE.as_str()).and_then(moment).unwrap_or(now);
            until.duration_since(now).ok()?
        }
    };
    (!pause.is_zero()).then_some(pause)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`: the form in which HTTP has dates written today.
fn moment(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let [_, day, month, year, time, "GMT"] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let [hour, minute, second] = time.split(':').collect::<Vec<_>>()[..] else { return None };
    let number = |text: &str, most: u64| text.parse::<u64>().ok().filter(|number| *number <= most);
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    // Years from March on, so that a leap day is a year's last: then months have 31, 30, 31, 30, 31 days, over and over.
    let (year, month) = (number(year, 9999)?.checked_sub(u64::from(month < 2))?, (month + 10) % 12);
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + number(day, 31)?;
    const TO_1970: u64 = 719_469;
    let seconds = 60 * (60 * number(hour, 23)? + number(minute, 59)?) + number(second, 60)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(86_400 * days.checked_sub(TO_1970)? + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::{HeaderName, HeaderValue};

    #[test]
    fn dates_are_the_seconds_that_they_are() {
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Tue, 29 Feb 2000 23:59:59 GMT", 951_868_799),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
            ("Fri, 31 Dec 2100 12:00:00 GMT", 4_133_937_600),
        ] {
            assert_eq!(moment(date), Some(UNIX_EPOCH + Duration::from_secs(seconds)), "{date}");
        }
        for odd in [
            "",
            "tomorrow",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nob 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Mon, 01 Jan 0000 00:00:00 GMT",
            "Sun, 06 Nov 1969 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
        ] {
            assert_eq!(moment(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_pause_is_heard_in_every_form() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let pause = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            pause_asked(&headers.collect(), now).map(|pause| pause.as_secs_f64())
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(pause(&[("retry-after", "2.5")]), Some(2.5));
        assert_eq!(pause(&[("retry-after-ms", "20"), ("retry-after", "1")]), Some(0.02));
        assert_eq!(pause(&[("retry-after", date)]), Some(77.0));
        // Its clock is ahead of ours.
        assert_eq!(pause(&[("retry-after", date), ("date", "Sun, 06 Nov 1994 08:49:30 GMT")]), Some(7.0));
        for none in ["0", "-1", "nan", "soon", "Sun, 06 Nov 1994 08:40:00 GMT"] {
            assert_eq!(pause(&[("retry-after", none)]), None, "{none}");
        }
        assert_eq!(pause(&[]), None);
    }
}
