//! Memory plans as people read them.

use super::machine;
use super::text::bytes;
use anyhow::{Context, Result};
use pellucid::backend::Backend;
use pellucid::model::{MemoryPlan, Tenant, divide};
use pellucid::rl::cast::Memory as RunMemory;
use serde::Serialize;

/// Bytes that are free where it is computed.
pub(crate) fn free_memory(backend: &dyn Backend) -> Result<u64> {
    let free =
        backend.free_memory()?.or_else(|| machine::Memory::read().map(|memory| memory.available_bytes));
    free.context("this machine does not say how much memory is free")
}

/// What a run takes, for people.
pub(crate) fn run_lines(memory: &RunMemory) -> Vec<String> {
    let part = |(name, plan): &(&str, MemoryPlan)| {
        format!(
            "{:>11} {name}: {} of weights, {} of work space, {} of keys and values in {} pages",
            bytes(plan.total()),
            bytes(plan.mapped + plan.held),
            bytes(plan.workspace),
            bytes(plan.kv),
            plan.kv / plan.page().max(1)
        )
    };
    let used = memory.training + memory.parts.iter().map(|(_, plan)| plan.total()).sum::<u64>();
    let training = format!(
        "{:>11} training: activations, the adapter, its gradients and averages",
        bytes(memory.training)
    );
    let together = format!("{:>11} together, of {} that are free", bytes(used), bytes(memory.free));
    memory.parts.iter().map(part).chain([training, together]).collect()
}

/// What running a model takes.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    mapped_bytes: u64,
    converted_bytes: u64,
    #[serde(skip)]
    plan: MemoryPlan,
    kv_dtype: &'static str,
    kv_bytes_per_token: u64,
    context: usize,
    kv_bytes: u64,
    workspace_bytes: u64,
}

impl Memory {
    pub(crate) fn of(plan: MemoryPlan, context: usize) -> Self {
        Memory {
            mapped_bytes: plan.mapped,
            converted_bytes: plan.held,
            plan,
            kv_dtype: plan.kv_dtype.name(),
            kv_bytes_per_token: plan.kv_per_token,
            context,
            kv_bytes: plan.kv,
            workspace_bytes: plan.workspace,
        }
    }

    /// For people.
    pub(crate) fn lines(&self, max_positions: usize) -> Vec<String> {
        let Memory { plan, context, kv_dtype, .. } = self;
        let mut lines = match plan.mapped {
            0 => {
                vec![format!("{:>11} weights, copied to the device in {}", bytes(plan.held), plan.held_dtype)]
            }
            _ => vec![
                format!("{:>11} weights, used where they lie in the file", bytes(plan.mapped)),
                format!("{:>11} weights, converted to {} when loaded", bytes(plan.held), plan.held_dtype),
            ],
        };
        lines.extend([
            format!(
                "{:>11} keys and values in {kv_dtype} for {context} tokens, {} each",
                bytes(plan.kv),
                bytes(plan.kv_per_token)
            ),
            format!("{:>11} work space of the decoder", bytes(plan.workspace)),
            format!("{:>11} together", bytes(plan.total())),
        ]);
        if *context > max_positions {
            lines.push(format!("the model was made for {max_positions} tokens, not for {context}"));
        }
        lines
    }
}

/// Several models that share a machine's memory, each with pages of its own.
#[derive(Debug, Serialize)]
pub(crate) struct Together {
    free_bytes: u64,
    models: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    weight_bytes: u64,
    workspace_bytes: u64,
    kv_bytes: u64,
    pages: u64,
    most_pages: usize,
}

impl Together {
    /// Divides what there is, or says why that is not enough.
    pub(crate) fn plan(tenants: &[Tenant], free_bytes: u64) -> Result<Self> {
        let plans = divide(tenants, free_bytes)?;
        let part = |(tenant, plan): (&Tenant, MemoryPlan)| Part {
            name: tenant.name,
            weight_bytes: plan.mapped + plan.held,
            workspace_bytes: plan.workspace,
            kv_bytes: plan.kv,
            pages: plan.kv / plan.page().max(1),
            most_pages: tenant.most,
        };
        Ok(Together { free_bytes, models: tenants.iter().zip(plans).map(part).collect() })
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let total = |part: &Part| part.weight_bytes + part.workspace_bytes + part.kv_bytes;
        let line = |part: &Part| {
            let Part { name, pages, most_pages, .. } = part;
            format!(
                "{:>11} {name}: {} of weights, {} of work space, {} in {pages} pages of the {most_pages} it could use",
                bytes(total(part)),
                bytes(part.weight_bytes),
                bytes(part.workspace_bytes),
                bytes(part.kv_bytes),
            )
        };
        let used = self.models.iter().map(total).sum();
        let both = format!("{:>11} together, of {} that are free", bytes(used), bytes(self.free_bytes));
        self.models.iter().map(line).chain([both]).collect()
    }
}
