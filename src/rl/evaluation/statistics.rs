//! Rates with their uncertainty, and whether two of them differ.

use serde::{Deserialize, Serialize};

/// The 97.5 % quantile of the normal distribution: 95 % of it lies within this many standard deviations.
const Z: f64 = 1.959_963_984_540_054;

/// How many of how many, with Wilson's 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// Those that are.
    pub count: u64,
    /// Of all.
    pub of: u64,
    /// The one over the other.
    pub rate: f64,
    /// The interval's lower end.
    pub low: f64,
    /// And its upper end.
    pub high: f64,
}

impl Rate {
    /// None of nothing.
    pub fn new(count: u64, of: u64) -> Option<Self> {
        if of == 0 {
            return None;
        }
        let (n, rate) = (of as f64, count as f64 / of as f64);
        let spread = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
        let middle = rate + Z * Z / (2.0 * n);
        let scale = 1.0 + Z * Z / n;
        // At the ends the interval is exact: rounding must not push it past what rates can be.
        let low = if count == 0 { 0.0 } else { (middle - spread) / scale };
        let high = if count == of { 1.0 } else { (middle + spread) / scale };
        Some(Rate { count, of, rate, low, high })
    }

    /// The share of those that are, among those of whom it is known.
    pub fn among(known: impl IntoIterator<Item = bool>) -> Option<Self> {
        let (mut count, mut of) = (0, 0);
        for is in known {
            count += u64::from(is);
            of += 1;
        }
        Rate::new(count, of)
    }

    /// As [`Rate::among`], where it must be known of all.
    pub fn among_all(known: impl IntoIterator<Item = Option<bool>>) -> Option<Self> {
        Rate::among(known.into_iter().collect::<Option<Vec<bool>>>()?)
    }
}

/// McNemar's exact test, two-sided: how likely at least as lopsided a split of `lost + gained` pairs is if each falls
/// either way by the toss of a coin.
pub fn mcnemar(lost: u64, gained: u64) -> f64 {
    let n = lost + gained;
    let log_ways = |k: u64| {
        let factorial = |m: u64| libm::lgamma(m as f64 + 1.0);
        factorial(n) - factorial(k) - factorial(n - k)
    };
    let tosses = n as f64 * std::f64::consts::LN_2;
    let tail: f64 = (0..=lost.min(gained)).map(|k| (log_ways(k) - tosses).exp()).sum();
    (2.0 * tail).min(1.0)
}

/// The value that a share `q` of the values lies below, interpolated between the two nearest.
pub(super) fn quantile(values: &[usize], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    let at = q * last as f64;
    let (below, above) = (sorted[at.floor() as usize] as f64, sorted[at.ceil() as usize] as f64);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-10 * b.abs().max(1e-300)
    }

    #[test]
    fn wilson_is_statsmodels() {
        // proportion_confint(count, nobs, method='wilson') of statsmodels 0.15.
        for (count, of, low, high) in [
            (0, 10, 0.0, 0.27753279986288926),
            (10, 10, 0.7224672001371106, 1.0),
            (7, 10, 0.39677814746114537, 0.8922087325936989),
            (199, 1000, 0.175427205789421, 0.22487650281888322),
            (936, 1000, 0.9190992674988255, 0.9495637991017706),
            (1, 1, 0.2065493143772374, 1.0),
            (4069, 10000, 0.3973090933710891, 0.4165624071255307),
        ] {
            let rate = Rate::new(count, of).expect("of something");
            assert!(near(rate.low, low) && near(rate.high, high), "{rate:?}");
            assert!(rate.low <= rate.rate && rate.rate <= rate.high, "{rate:?}");
        }
        assert_eq!(Rate::new(0, 0), None);
    }

    #[test]
    fn wilson_by_hand() {
        // 1 of 4: centre (1/4 + z²/8) / (1 + z²/4), half-width z·√(3/64 + z²/64) / (1 + z²/4), z² = 3.841458821.
        let rate = Rate::new(1, 4).expect("of something");
        let (scale, half) = (1.0 + 3.841458820694124 / 4.0, Z * (6.841458820694124f64 / 64.0).sqrt());
        assert!(near(rate.low, (0.25 + 3.841458820694124 / 8.0 - half) / scale));
        assert!(near(rate.high, (0.25 + 3.841458820694124 / 8.0 + half) / scale));
    }

    #[test]
    fn mcnemar_is_statsmodels() {
        // mcnemar([[0, lost], [gained, 0]], exact=True).pvalue of statsmodels 0.15; 12:0 by hand is 2 / 2¹².
        for (lost, gained, p) in [
            (1, 0, 1.0),
            (3, 11, 0.057373046875),
            (12, 0, 2.0 / 4096.0),
            (5, 5, 1.0),
            (40, 60, 0.05688793364098089),
            (300, 420, 8.807756168615114e-06),
            (1000, 1100, 0.03072070786424249),
            (2, 740, 2.3830739092569547e-218),
        ] {
            let (one, other) = (mcnemar(lost, gained), mcnemar(gained, lost));
            assert!((one - p).abs() <= 1e-9 * p, "{lost}:{gained} {one} {p}");
            assert_eq!(one, other);
        }
        assert_eq!(mcnemar(0, 0), 1.0, "no pair differs");
    }

    #[test]
    fn quantiles_are_numpys() {
        assert_eq!(quantile(&[10, 2, 3, 4, 5, 6, 7, 8, 9, 40], 0.0), Some(2.0));
        assert!(near(quantile(&[1, 2, 3, 4, 5, 40, 7, 8, 9, 6], 0.95).expect("of something"), 26.05));
        assert!(near(quantile(&[12, 8, 9], 0.95).expect("of something"), 11.7));
        assert_eq!(quantile(&[5], 0.95), Some(5.0));
        assert_eq!(quantile(&[], 0.95), None);
    }
}
