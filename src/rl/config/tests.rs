use super::*;
use crate::format::adapter::ModuleSet;
use crate::train::objective::{Aggregation, BetaDensity, Clip, Kl, Normalizer, Tiers};

const LEAST: &str =
    "captioner = { model = \"m\" }\ndata = { train = \"d.jsonl\" }\nrun = { steps = 3, out = \"o\" }\n";

fn refusal(text: &str, changes: &[&str]) -> String {
    let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
    Config::parse(text, &changes).expect_err("is wrong").to_string()
}

#[test]
fn little_is_enough_and_changes_are_heard() {
    let config = Config::parse(LEAST, &[]).expect("is enough");
    assert_eq!(config.captioner.lora.rank, 128);
    let changes = ["optim.lr=2e-4", "run.out=runs/two", "captioner.lora.targets=[\"q_proj\"]", "seed=7"];
    let changed = Config::parse(LEAST, &changes.map(str::to_owned)).expect("is right");
    assert_eq!((changed.optim.lr, changed.seed), (2e-4, 7));
    assert_eq!(changed.run.out, Path::new("runs/two"));
    assert_eq!(
        changed.captioner.lora.modules().expect("are names"),
        ModuleSet::Named(vec!["q_proj".to_owned()])
    );
    let text = toml::to_string(&changed).expect("can be written");
    assert_eq!(Config::parse(&text, &[]).expect("can be read"), changed);
}

#[test]
fn what_nobody_knows_is_refused_by_name() {
    assert!(
        refusal(&format!("{LEAST}[optim]\nlearning_rate = 1"), &[]).contains("unknown field `learning_rate`")
    );
    assert!(refusal(LEAST, &["optim.lrr=1"]).contains("unknown field `lrr`"));
    assert!(refusal(LEAST, &["optim.lrr.x=1"]).contains("unknown field `lrr`"));
    assert!(refusal(LEAST, &["objective.advantage=bnpo"]).contains("two things"));
    assert!(refusal(LEAST, &["objective.kl={kind=\"k1\",coef=0.1}"]).contains("k1_in_reward"));
    assert!(refusal(LEAST, &["objective.preset=\"grpo\""]).contains("acrl-xiao"));
    assert!(refusal(LEAST, &["objective.tiers=both"]).contains("decompose"));
    let shaped = "objective.kl={kind=\"k3_in_reward\",coef=0.1}";
    for bounded in ["objective.tiers=decompose", "objective.advantage=beta_density"] {
        assert!(refusal(LEAST, &[shaped, bounded]).contains("out of 0 to 1"));
    }
    assert!(refusal(LEAST, &["captioner.lora.dropout=0.1"]).contains("only 0"));
    assert!(refusal(LEAST, &["captioner.freeze_tower=true"]).contains("captioner.full"));
    assert!(refusal(LEAST, &["captioner.full=true", "captioner.adapter=a"]).contains("one of them"));
    for count in ["run.steps", "run.positions", "data.eval_limit"] {
        assert!(refusal(LEAST, &[&format!("{count}=0")]).contains(&format!("{count} is 0")));
    }
    assert!(refusal(LEAST, &["optim.lr=-1"]).contains("lr -1"));
    assert!(refusal(LEAST, &["optim"]).contains("key=value"));
}

#[test]
fn more_than_a_machine_could_hold_is_a_slip() {
    let many = refusal(LEAST, &["optim.prompts_per_step=100000000"]);
    assert!(many.contains("optim.prompts_per_step times optim.group_size is 800000000"), "{many}");
}

#[test]
fn nothing_is_drawn_at_odd_settings() {
    for part in ["captioner", "reasoner", "reference"] {
        for odd in ["-1.0", "nan", "inf", "1e-9"] {
            let said = refusal(LEAST, &[&format!("{part}.temperature={odd}")]);
            assert!(said.contains(&format!("{part}.temperature")), "{said}");
        }
    }
    for odd in ["0.0", "1.5", "-0.5", "nan"] {
        let said = refusal(LEAST, &[&format!("reasoner.top_p={odd}")]);
        assert!(said.contains("reasoner.top_p"), "{said}");
    }
    assert!(refusal(LEAST, &["captioner.temperature=0.0"]).contains("captioner.temperature is 0"));
    let learning = ["reasoner.temperature=1.0", "reasoner.learn.lr=nan"];
    assert!(refusal(LEAST, &learning).contains("reasoner.learn.lr"));
    let greedy = ["reasoner.temperature=0.0", "reference.temperature=0.0"].map(str::to_owned);
    assert!(Config::parse(LEAST, &greedy).is_ok());
}

#[test]
fn a_slip_is_told_what_may_have_been_meant() {
    let file = refusal(&format!("{LEAST}[optim]\nwarm_up_steps = 1\n"), &[]);
    assert!(file.contains("line 5") && file.contains("did you mean `warmup_steps`?"), "{file}");
    for (change, meant) in [
        ("optm.lr=1", "`optim`"),
        ("optim.gruop_size=4", "`group_size`"),
        ("captioner.lora.ranks=4", "`rank`"),
        ("reasoner.server.patiense=4", "`patience`"),
        ("prompts.captoin=x", "`caption`"),
        ("objective.preset=acrl-tlr", "`acrl-trl`"),
        ("episode.kind=prko", "`prco`"),
        ("reasoner.wire=two-call", "`two_call`"),
        ("episode.leaks=rules", "`rule`"),
        ("objective.advantage=group-std", "\"group_std\""),
        ("objective.aggregation=token_mean_globl", "\"token_mean_global\""),
        ("objective.tiers=decomposed", "\"decompose\""),
        ("objective.kl={kind=\"k1_in_rewrad\",coef=1}", "\"k1_in_reward\""),
        ("optim.schedule=cosin", "\"cosine\""),
        ("data.layout=math-vista", "\"mathvista\""),
        ("prompts=wrold", "\"world\""),
    ] {
        let said = refusal(LEAST, &[change]);
        assert!(said.contains(&format!("did you mean {meant}?")), "{change}: {said}");
    }
    let far = refusal(LEAST, &["optim.temperature=1"]);
    assert!(far.contains("unknown field `temperature`") && !far.contains("did you mean"), "{far}");
}

#[test]
fn a_preset_is_what_is_left_unsaid() {
    let credit = |changes: &[&str]| {
        let changes: Vec<String> = changes.iter().map(|change| change.to_string()).collect();
        Config::parse(LEAST, &changes).expect("is right").credit().expect("is right")
    };
    let trl = credit(&["objective.preset=acrl-trl"]);
    assert_eq!(trl.normalizer, Normalizer::GroupStd { eps: 1e-4, ddof: 1 });
    assert_eq!(trl.objective.aggregation, Aggregation::TokenMeanLocal);
    assert_eq!(trl.objective.kl, Some((Kl::K3, 0.04)));
    let xiao = credit(&["objective.preset=acrl-xiao", "objective.clip_high=0.3"]);
    assert_eq!(xiao.objective.clip, Clip { low: 0.2, high: 0.3, dual: Some(10.0) });
    assert_eq!(xiao.objective.aggregation, Aggregation::SeqMeanTokenSum);
    assert_eq!(credit(&["objective.preset=prco"]).objective.kl, None);
    let prco = credit(&["episode.kind=prco"]);
    assert_eq!((prco.normalizer, prco.objective.kl), (Normalizer::None, None));
    assert_eq!(credit(&["episode.kind=racro"]).objective.kl, Some((Kl::K3, 0.001)));
    let shaped = credit(&["objective.kl={kind=\"k1_in_reward\",coef=0.1}"]);
    assert_eq!((shaped.kl_in_reward, shaped.objective.kl), (Some((Kl::K1, 0.1)), None));
    assert_eq!(credit(&["objective.tiers=decompose"]).tiers, Tiers::Decompose);
    let density = credit(&["objective.advantage={ kind = \"beta_density\", debias = true }"]).normalizer;
    assert_eq!(density, Normalizer::BetaDensity(BetaDensity { debias: true, ..BetaDensity::default() }));
}

#[test]
fn what_is_written_out_says_all_of_the_objective() {
    let mut cases = vec![vec![], vec!["episode.kind=prco"], vec!["episode.kind=racro"]];
    let presets = ["acrl-xiao", "acrl-trl", "bnpo-paper", "prco", "racro"];
    let presets: Vec<String> = presets.iter().map(|name| format!("objective.preset={name}")).collect();
    cases.extend(presets.iter().map(|preset| vec![preset.as_str()]));
    cases.extend([
        vec!["objective.preset=racro", "objective.dual_clip=inf", "objective.clip_high=0.3"],
        vec!["objective.kl={kind=\"k2_in_reward\",coef=0.1}", "objective.aggregation=const"],
        vec!["objective.kl={kind=\"k3\",coef=0.0}", "objective.tiers=decompose"],
        vec!["objective.advantage={kind=\"batch_std\",eps=0.5}"],
    ]);
    for changes in cases {
        let changes: Vec<String> = changes.into_iter().map(str::to_owned).collect();
        let said = Config::parse(LEAST, &changes).expect("is right");
        let text = toml::to_string(&said).expect("can be written");
        assert_eq!(Config::parse(&text, &[]).expect("can be read"), said, "{changes:?}");
        // What a preset says is said, so that whatever it will say changes nothing.
        let alone: String = text.split_inclusive('\n').filter(|line| !line.starts_with("preset")).collect();
        let read = Config::parse(&alone, &[]).expect("can be read");
        assert_eq!(read.credit().expect("is right"), said.credit().expect("is right"), "{changes:?}");
        for key in [
            "[objective.advantage]",
            "aggregation = ",
            "clip_low = ",
            "clip_high = ",
            "[objective.kl]",
            "tiers = ",
        ] {
            assert!(text.contains(key), "{key} is missing in {text}");
        }
    }
    for (odd, said) in [
        ("{ kind = \"rloo\", eps = 1.0 }", "objective.advantage.\"eps\" is not known"),
        ("{ kind = \"group_sdt\" }", "did you mean `group_std`?"),
        ("{ kind = \"group_std\", eps = nan }", "eps NaN"),
        ("{ kind = \"beta_density\", largest_wieght = 3.0 }", "did you mean \"largest_weight\"?"),
        ("{ kind = \"beta_density\", fixed = [0.0, 1.0] }", "fixed holds 0"),
        ("3", "is a name, or a table"),
    ] {
        let refused = refusal(LEAST, &[&format!("objective.advantage={odd}")]);
        assert!(refused.contains(said), "{odd}: {refused}");
    }
}
