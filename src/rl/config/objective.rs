//! `[objective]`: how graded completions become a loss, and settings of it that were published together.

use super::{Captioner, OP};
use crate::error::{Error, Result, unknown};
use crate::rl::parts::Kind;
use crate::train::Objective;
use crate::train::objective::{Aggregation, BetaDensity, Clip, Kl, Normalizer, Tiers};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

/// How graded completions become a loss; what is left out is the preset's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectiveConfig {
    /// Settings that belong together, by name.
    pub preset: Option<Preset>,
    /// How rewards become advantages: a name, or a table with its settings.
    #[serde(deserialize_with = "advantage")]
    pub advantage: Option<Normalizer>,
    /// "direct" normalises rewards as they are, "decompose" each tier by itself.
    pub tiers: Option<String>,
    /// How tokens count.
    pub aggregation: Option<String>,
    /// The ratio counts down to 1 − this.
    pub clip_low: Option<f64>,
    /// And up to 1 + this.
    pub clip_high: Option<f64>,
    /// The most that a bad token costs, in times its advantage.
    pub dual_clip: Option<f64>,
    /// The pull towards the reference.
    pub kl: Option<KlConfig>,
}

/// The pull towards the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlConfig {
    /// "k1", "k2" or "k3" in the loss, or any of them as "k1_in_reward".
    pub kind: String,
    /// Its weight; 0 is none.
    pub coef: f64,
}

/// Settings that were published together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// AC-RL with the Beta normalisation of Xiao et al.
    AcrlXiao,
    /// AC-RL as TRL's `bnpo` loss has it.
    AcrlTrl,
    /// The Beta normalisation as its authors ran it.
    BnpoPaper,
    /// PRCO.
    Prco,
    /// RACRO.
    Racro,
}

/// Rewards into advantages and a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Credit {
    /// Rewards into advantages.
    pub normalizer: Normalizer,
    /// As they are, or tier by tier.
    pub tiers: Tiers,
    /// Advantages into a loss.
    pub objective: Objective,
    /// The pull of the reference that is taken off rewards, if one is; the loss then has none.
    pub kl_in_reward: Option<(Kl, f64)>,
}

impl ObjectiveConfig {
    /// How rewards become a loss: the preset, which is the kind of episode's where none is named, and what is said beside
    /// it.
    pub(super) fn credit(&self, kind: Kind, captioner: &Captioner) -> Result<Credit> {
        let usual = match kind {
            Kind::Prco => Preset::Prco,
            Kind::Racro => Preset::Racro,
            Kind::Acrl | Kind::Binary | Kind::Caprl => Preset::AcrlTrl,
        };
        let preset = self.preset.unwrap_or(usual).settings();
        let normalizer = self.advantage.unwrap_or(preset.normalizer);
        normalizer.check()?;
        let aggregation = match &self.aggregation {
            Some(name) => Aggregation::named(name, captioner.max_tokens)?,
            None => preset.objective.aggregation,
        };
        let base = preset.objective.clip;
        let clip = Clip {
            low: self.clip_low.unwrap_or(base.low),
            high: self.clip_high.unwrap_or(base.high),
            dual: self.dual_clip.or(base.dual),
        };
        if !(0.0..1.0).contains(&clip.low)
            || clip.high.is_nan()
            || clip.high < 0.0
            || clip.dual.is_some_and(|d| d.is_nan() || d <= 1.0)
        {
            let what = format!("{clip:?}: clip_low is from 0 to 1, clip_high from 0 up, dual_clip above 1");
            return Err(Error::caller(OP, what));
        }
        let (kl, kl_in_reward) = match &self.kl {
            None => (preset.objective.kl, None),
            Some(KlConfig { coef, .. }) if *coef == 0.0 => (None, None),
            Some(KlConfig { kind, coef }) => {
                let (name, in_reward) = match kind.strip_suffix("_in_reward") {
                    Some(name) => (name, true),
                    None => (kind.as_str(), false),
                };
                let kind = match name {
                    "k1" => Kl::K1,
                    "k2" => Kl::K2,
                    "k3" => Kl::K3,
                    _ => {
                        let what =
                            unknown(kind, &["k2", "k3", "k1_in_reward", "k2_in_reward", "k3_in_reward"]);
                        return Err(Error::caller(OP, format!("objective.kl.kind {what}")));
                    }
                };
                if !coef.is_finite() || *coef < 0.0 {
                    return Err(Error::caller(OP, format!("objective.kl.coef {coef} is no weight")));
                }
                if kind == Kl::K1 && !in_reward {
                    return Err(Error::caller(
                        OP,
                        "k1 in the loss has no slope on average; use k1_in_reward, k2 or k3",
                    ));
                }
                let pull = Some((kind, *coef));
                if in_reward { (None, pull) } else { (pull, None) }
            }
        };
        let tiers = self.tiers.as_deref().map_or(Ok(Tiers::Direct), Tiers::named)?;
        let bounded = matches!(normalizer, Normalizer::BetaDensity(_)) || tiers == Tiers::Decompose;
        if kl_in_reward.is_some() && bounded {
            return Err(Error::caller(
                OP,
                "objective.kl in the reward takes rewards out of 0 to 1, where beta_density and tiers = \"decompose\" \
                 need them; use k2 or k3 in the loss, or another advantage with tiers = \"direct\"",
            ));
        }
        let objective = Objective { clip, kl, aggregation, temperature: captioner.temperature };
        Ok(Credit { normalizer, tiers, objective, kl_in_reward })
    }

    /// With everything said that a preset says: what is read from that is the same whatever presets will be.
    pub(super) fn resolved(self, kind: Kind, captioner: &Captioner) -> Result<Self> {
        let Credit { normalizer, tiers, objective, kl_in_reward } = self.credit(kind, captioner)?;
        let (name, coef) = match (objective.kl, kl_in_reward) {
            (Some((kind, coef)), _) => (kind.name().to_owned(), coef),
            (None, Some((kind, coef))) => (format!("{}_in_reward", kind.name()), coef),
            (None, None) => (Kl::K3.name().to_owned(), 0.0),
        };
        Ok(ObjectiveConfig {
            preset: self.preset,
            advantage: Some(normalizer),
            tiers: Some(tiers.name().to_owned()),
            aggregation: Some(objective.aggregation.name().to_owned()),
            clip_low: Some(objective.clip.low),
            clip_high: Some(objective.clip.high),
            dual_clip: objective.clip.dual,
            kl: Some(KlConfig { kind: name, coef }),
        })
    }
}

/// A name, with its usual settings, or `{ kind, … }`.
fn advantage<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Normalizer>, D::Error> {
    let table = match toml::Value::deserialize(from)? {
        toml::Value::String(name) => return Normalizer::named(&name).map(Some).map_err(D::Error::custom),
        toml::Value::Table(table) => table,
        _ => return Err(D::Error::custom("objective.advantage is a name, or a table { kind = NAME, … }")),
    };
    let read = Normalizer::deserialize(table.clone()).map_err(|odd| D::Error::custom(odd.message()))?;
    let known = toml::Table::try_from(read).map_err(D::Error::custom)?;
    match table.keys().find(|key| !known.contains_key(*key)) {
        Some(odd) => {
            let known: Vec<&str> = known.keys().map(String::as_str).collect();
            Err(D::Error::custom(format!("objective.advantage.{}", unknown(odd, &known))))
        }
        None => Ok(Some(read)),
    }
}

impl Preset {
    fn settings(self) -> Credit {
        let clip = |low, high, dual| Clip { low, high, dual };
        let group_std = |eps| Normalizer::GroupStd { eps, ddof: 1 };
        let k3 = |weight| Some((Kl::K3, weight));
        use Aggregation::{SeqMeanTokenSum, TokenMeanGlobal, TokenMeanLocal};
        let (normalizer, aggregation, clip, kl) = match self {
            Preset::AcrlXiao => {
                let density = BetaDensity { largest_weight: 10.0, ..BetaDensity::default() };
                (Normalizer::BetaDensity(density), SeqMeanTokenSum, clip(0.2, 0.28, Some(10.0)), k3(0.04))
            }
            Preset::AcrlTrl => (group_std(1e-4), TokenMeanLocal, clip(0.2, 0.2, None), k3(0.04)),
            Preset::BnpoPaper => {
                let density = BetaDensity { largest_weight: 1e6, ..BetaDensity::default() };
                (Normalizer::BetaDensity(density), SeqMeanTokenSum, clip(0.2, 0.28, Some(10.0)), None)
            }
            Preset::Prco => (Normalizer::None, TokenMeanGlobal, clip(0.2, 0.28, Some(3.0)), None),
            Preset::Racro => (group_std(1e-6), TokenMeanGlobal, clip(0.2, 0.2, Some(3.0)), k3(0.001)),
        };
        let objective = Objective { clip, kl, aggregation, temperature: 1.0 };
        Credit { normalizer, tiers: Tiers::Direct, objective, kl_in_reward: None }
    }
}
