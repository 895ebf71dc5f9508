//! What running a model takes, from its configuration and the types in its files, before anything runs.

use super::cache::{PAGE, bytes_per_position, pages_for};
use super::decoder::workspace_bytes_per_row;
use crate::error::{Error, Result};
use crate::format::config::DecoderConfig;
use crate::format::{Checkpoint, FileDtype};
use crate::tensor::Dtype;

/// Bytes a model takes on a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Weights used where they lie in the mapped file; none on a device.
    pub mapped: u64,
    /// Weights the backend holds itself.
    pub held: u64,
    /// The dtype of those.
    pub held_dtype: Dtype,
    /// The dtype of keys and values.
    pub kv_dtype: Dtype,
    /// Keys and values of one token.
    pub kv_per_token: u64,
    /// Keys and values of all pages.
    pub kv: u64,
    /// Activations of the decoder in one pass.
    pub workspace: u64,
}

impl MemoryPlan {
    /// What it takes to hold `positions` tokens in pages and to run `rows` of them in one pass, where activations
    /// have this dtype.
    pub fn new(
        decoder: &DecoderConfig,
        checkpoint: &Checkpoint,
        activation: Dtype,
        positions: usize,
        rows: usize,
    ) -> Self {
        let device = activation == Dtype::BF16;
        // As the loader has it: on the CPU f32 and matrices in bf16 are used where they lie, all else becomes f32.
        let (mut mapped, mut held) = (0, 0);
        for view in checkpoint.views() {
            let in_place = match view.dtype() {
                FileDtype::F32 => true,
                FileDtype::BF16 => view.shape().len() > 1,
                _ => false,
            };
            match !device && in_place {
                true => mapped += view.bytes().len() as u64,
                false => held += (view.elements() * activation.size()) as u64,
            }
        }
        let embedding = checkpoint.views().find(|view| view.name().contains("embed_tokens."));
        let narrow = device || embedding.is_some_and(|view| view.dtype() == FileDtype::BF16);
        let kv_dtype = if narrow { Dtype::BF16 } else { activation };
        let kv_per_token = bytes_per_position(decoder, kv_dtype) as u64;
        MemoryPlan {
            mapped,
            held,
            held_dtype: activation,
            kv_dtype,
            kv_per_token,
            kv: kv_per_token * (pages_for(positions) * PAGE) as u64,
            workspace: (workspace_bytes_per_row(decoder, activation) * rows) as u64,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.mapped + self.held + self.kv + self.workspace
    }

    /// Bytes of a page of keys and values.
    pub fn page(&self) -> u64 {
        self.kv_per_token * PAGE as u64
    }

    /// The same with so many pages.
    pub fn with_pages(self, pages: usize) -> Self {
        MemoryPlan { kv: self.page() * pages as u64, ..self }
    }

    /// Refuses what `free` bytes do not hold.
    pub fn check(&self, free: u64) -> Result<()> {
        let needed = self.total() - self.mapped;
        if needed <= free {
            return Ok(());
        }
        let what = format!(
            "{needed} bytes are needed ({} of weights, {} of keys and values, {} of work space) and {free} are free; \
             use fewer tokens or sequences, or a smaller model",
            self.held, self.kv, self.workspace
        );
        Err(Error::machine("memory", what))
    }
}

/// One of several models that run side by side, each with pages of its own.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// What it is there for, in messages.
    pub name: &'static str,
    /// What it takes; its keys and values are what is to be decided.
    pub plan: MemoryPlan,
    /// Pages it cannot do without: its longest request.
    pub least: usize,
    /// Pages it could use at most: all its sequences, each as long as they get.
    pub most: usize,
}

/// Divides `free` bytes among models: weights and work space come first, then the pages each cannot do without, and of
/// what is left each gets the same share of the pages it could use besides. Weights that lie in mapped files count:
/// every pass reads them. Returns each model's plan, or says what they need.
pub fn divide(tenants: &[Tenant], free: u64) -> Result<Vec<MemoryPlan>> {
    let least = |tenant: &Tenant| tenant.plan.with_pages(tenant.least).total();
    let more = |tenant: &Tenant| tenant.plan.page() * tenant.most.saturating_sub(tenant.least) as u64;
    let needed: u64 = tenants.iter().map(least).sum();
    let Some(left) = free.checked_sub(needed) else {
        let one = |tenant: &Tenant| {
            let MemoryPlan { mapped, held, kv, workspace, .. } = tenant.plan.with_pages(tenant.least);
            let Tenant { name, least, .. } = tenant;
            let weights = mapped + held;
            format!("the {name} {weights} of weights, {workspace} of work space and {kv} for {least} pages")
        };
        let parts: Vec<String> = tenants.iter().map(one).collect();
        let what = format!(
            "{needed} bytes are needed at least ({}) and {free} are free; use smaller models, a shorter context or \
             fewer tokens per pass",
            parts.join("; ")
        );
        return Err(Error::machine("memory", what));
    };
    let wished: u64 = tenants.iter().map(more).sum();
    let share = |tenant: &Tenant| {
        let besides = tenant.most.saturating_sub(tenant.least) as u128;
        let pages = (besides * u128::from(left)).checked_div(u128::from(wished)).unwrap_or(0).min(besides);
        tenant.plan.with_pages(tenant.least + pages as usize)
    };
    Ok(tenants.iter().map(share).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan(mapped: u64, workspace: u64, kv_per_token: u64) -> MemoryPlan {
        let (held_dtype, kv_dtype) = (Dtype::F32, Dtype::BF16);
        MemoryPlan { mapped, held: 10, held_dtype, kv_dtype, kv_per_token, kv: 0, workspace }
    }

    fn tenant(kv_per_token: u64, least: usize, most: usize) -> Tenant {
        Tenant { name: "captioner", plan: plan(1000, 50, kv_per_token), least, most }
    }

    #[test]
    fn what_is_too_much_is_refused_by_its_parts() {
        let both = [tenant(2, 3, 9), Tenant { name: "reasoner", ..tenant(1, 4, 4) }];
        let needed = 2 * 1060 + (2 * 3 + 4) * 64;
        assert_eq!(divide(&both, needed).unwrap().iter().map(MemoryPlan::total).sum::<u64>(), needed);
        let error = divide(&both, needed - 1).unwrap_err().to_string();
        for part in [
            "2760 bytes are needed",
            "2759 are free",
            "captioner 1010 of weights",
            "reasoner",
            "384 for 3 pages",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn everyone_gets_enough_nobody_too_much_and_little_is_left(
            sizes in prop::collection::vec((1u64..50, 0usize..40, 0usize..900), 1..4),
            spare in 0u64..2_000_000,
        ) {
            let tenants: Vec<Tenant> =
                sizes.iter().map(|&(kv, least, more)| tenant(kv, least, least + more)).collect();
            let fixed: u64 = tenants.iter().map(|one| one.plan.with_pages(one.least).total()).sum();
            let plans = divide(&tenants, fixed + spare).unwrap();
            let used: u64 = plans.iter().map(MemoryPlan::total).sum();
            prop_assert!(used <= fixed + spare);
            let mut all = true;
            for (tenant, plan) in tenants.iter().zip(&plans) {
                let pages = (plan.kv / plan.page()) as usize;
                prop_assert!(pages >= tenant.least && pages <= tenant.most);
                all &= pages == tenant.most;
            }
            // A page of each is all that rounding may cost.
            let pages: u64 = tenants.iter().map(|tenant| tenant.plan.page()).sum();
            prop_assert!(all || fixed + spare - used <= pages);
        }
    }
}
