//! The same gradients, losses and files as torch and peft.

use super::*;

const CASES: [&str; 9] = [
    "qwen2",
    "qwen2_5",
    "qwen3",
    "llama3",
    "smollm2",
    "qwen2_vl",
    "qwen2_5_vl",
    "internvl3",
    "internvl3_large",
];

#[test]
fn gradients_are_those_of_torch_and_peft() {
    for case in CASES.map(Case::read) {
        let school = School::new(&case, cpu(), Dtype::F32);
        let theirs = Checkpoint::open_file(&school.folder.join("gradients.safetensors")).unwrap();
        let theirs: BTreeMap<String, Vec<f64>> = theirs
            .views()
            .map(|view| {
                let name = view.name().trim_start_matches("base_model.model.").trim_end_matches(".weight");
                let values: &[f32] = bytemuck::cast_slice(view.bytes());
                (canonical_module(name).to_owned(), values.iter().map(|&value| value.into()).collect())
            })
            .collect();
        let ours = school.gradients(&school.batches(4096), fixture_slope);
        let names = school.lora.names();
        assert_eq!(names.len(), theirs.len(), "{}", case.name);
        for (name, tensor) in names.iter().zip(ours.tensors()) {
            let far = distance(&tensor.to_f64(), &theirs[canonical_module(name)]);
            assert!(far < 1e-4, "{} {name}: off by {far:e}", case.name);
        }
    }
}

#[derive(serde::Deserialize)]
struct Steps {
    losses: Vec<f64>,
    norms: Vec<f64>,
}

#[test]
fn ten_steps_lose_what_torch_loses() {
    for case in CASES.map(Case::read) {
        let school = School::new(&case, cpu(), Dtype::F32);
        let text = std::fs::read_to_string(school.folder.join("steps.json")).unwrap();
        let theirs: Steps = serde_json::from_str(&text).unwrap();
        let optimiser = OptimiserSettings {
            learning_rate: 2e-3,
            betas: [0.9, 0.99],
            weight_decay: 0.01,
            max_grad_norm: 0.5,
            ..OptimiserSettings::default()
        };
        let mut trainer =
            Trainer::new(school.model.clone(), school.lora, settings(objective(), optimiser)).unwrap();
        for (step, (loss, norm)) in theirs.losses.iter().zip(&theirs.norms).enumerate() {
            let stats = trainer.supervise(&school.samples).unwrap();
            let (far, off) = ((stats.loss - loss).abs(), (stats.grad_norm / norm - 1.0).abs());
            assert!(far < 1e-4, "{} step {step}: loss {} for {loss}", case.name, stats.loss);
            assert!(off < 1e-3, "{} step {step}: norm {} for {norm}", case.name, stats.grad_norm);
        }
        assert!(theirs.losses[9] < theirs.losses[0] - 0.1, "{}: nothing was learned", case.name);
    }
}

/// PEFT loads a checkpoint without missing or refusing anything, and its log-probs are ours.
#[test]
#[ignore = "needs tests/golden/requirements.txt: PYTHON=python cargo test --test training -- --ignored"]
fn checkpoints_are_read_by_peft() {
    for name in ["qwen3", "qwen2_5_vl", "internvl3"] {
        let school = School::new(&Case::read(name), cpu(), Dtype::F32);
        let named = ModuleSet::Named(vec!["v_proj".into(), "up_proj".into(), "down_proj".into()]);
        for targets in [ModuleSet::AllLinear, named] {
            let spec = LoraSpec { rank: 4, alpha: 6.0, targets, base_model: Some(name.to_owned()) };
            let lora = Lora::fresh(&school.model.config, spec, 3).unwrap();
            let optimiser = OptimiserSettings { learning_rate: 1e-2, ..OptimiserSettings::default() };
            let settings = settings(objective(), optimiser);
            let mut trainer = Trainer::new(school.model.clone(), lora, settings).unwrap();
            for _ in 0..3 {
                trainer.supervise(&school.samples).unwrap();
            }
            let home = tempfile::tempdir().unwrap();
            let folder = save(&trainer, &[], home.path(), 3, 1, &serde_json::Value::Null).unwrap();
            let python = std::env::var_os("PYTHON").unwrap_or("python3".into());
            let script = school.folder.join("../../trained.py");
            let run = std::process::Command::new(python).arg(script).arg(name).arg(&folder).output().unwrap();
            assert!(run.status.success(), "{name}: {}", String::from_utf8_lossy(&run.stderr));
            let theirs: Vec<Vec<f64>> = serde_json::from_slice(&run.stdout).unwrap();

            let mut learner = Learner::new(school.model.clone()).unwrap();
            let mut far = |adapter| {
                let batch = &school.batches(10_000)[0];
                let ours = learner.read(&school.samples, batch, adapter, 1.0).unwrap().logp.concat();
                let theirs = theirs.concat();
                assert_eq!(ours.len(), theirs.len());
                // In f32 a log-prob of −10 has a digit less than one of −1.
                let off = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(1.0);
                ours.iter().zip(&theirs).map(off).fold(0.0, f64::max)
            };
            let (with, without) = (far(Some(&trainer.adapter())), far(None));
            println!("{name}: off by {with:e}; {without:.2} without the adapter");
            assert!(with < 1e-5, "{name}: log-probs are off by {with:e}");
            assert!(without > 0.1, "{name}: training changed no log-prob by more than {without}");
        }
    }
}
