//! A memory plan as people read it.

use super::text::bytes;
use pellucid::model::MemoryPlan;
use serde::Serialize;

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
