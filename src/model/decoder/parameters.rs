//! A decoder's weights, by the names its checkpoint has for them.

use super::Decoder;
use crate::model::adapter::Projection;
use crate::model::weights::LinearWeights;
use crate::tensor::Tensor;

impl Decoder {
    /// Every weight by its name, in the order of the gradients of a whole decoder.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let prefix = &self.prefix;
        let mut all = vec![(format!("{prefix}embed_tokens.weight"), &self.embedding)];
        for (layer, block) in self.blocks.iter().enumerate() {
            let name = |name: &str| format!("{prefix}layers.{layer}.{name}");
            all.push((name("input_layernorm.weight"), &block.attention_norm));
            if let Some((queries, keys)) = &block.head_norms {
                all.push((name("self_attn.q_norm.weight"), queries));
                all.push((name("self_attn.k_norm.weight"), keys));
            }
            all.push((name("post_attention_layernorm.weight"), &block.ffn_norm));
            for projection in Projection::ALL {
                all.extend(block.linear(projection).parameters(&name(projection.module())));
            }
        }
        all.push((format!("{prefix}norm.weight"), &self.norm));
        all.extend(self.head.iter().map(|head| (format!("{}.weight", self.head_name), head)));
        all
    }

    /// The weights in the order of [`Decoder::parameters`].
    pub fn parameters_mut(&mut self) -> Vec<&mut Tensor> {
        let mut all = vec![&mut self.embedding];
        for block in &mut self.blocks {
            all.push(&mut block.attention_norm);
            all.extend(block.head_norms.iter_mut().flat_map(|(queries, keys)| [queries, keys]));
            all.push(&mut block.ffn_norm);
            all.extend(block.linears.iter_mut().flat_map(LinearWeights::parameters_mut));
        }
        all.push(&mut self.norm);
        all.extend(&mut self.head);
        all
    }
}
