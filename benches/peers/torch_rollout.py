"""Many sequences at once in transformers on PyTorch, on the CPU: `generate` over a padded batch, or `generate_batch`.

    python benches/peers/torch_rollout.py FOLDER --threads 4 [--continuous] [--dtype bfloat16|float32]

Needs torch and transformers (tests/golden/requirements.txt names the versions).
"""

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

import many


def main():
    parser = many.arguments()
    parser.add_argument("--continuous", action="store_true", help="continuous batching over pages")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).eval()
    # No end token: every completion takes all its tokens.
    model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)

    def padded(prompts, new):
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return model.generate(ids, attention_mask=mask, max_new_tokens=new)[:, longest:].tolist()

    def continuous(prompts, new):
        settings = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=-1)
        # Room for all: 32 sequences of up to 312 positions.
        limits = ContinuousBatchingConfig(page_size=64, num_blocks=256, max_batch_tokens=1024)
        done = model.generate_batch(
            prompts, generation_config=settings, continuous_batching_config=limits, progress_bar=False
        )
        return [output.generated_tokens for output in done.values()]

    complete, what = (continuous, "generate_batch") if options.continuous else (padded, "generate")
    name = f"transformers {transformers.__version__} {what}, torch {torch.__version__}"
    # The thread of continuous batching is not in this mode and could not write to its tensors.
    with torch.inference_mode(not options.continuous):
        many.run(name, options, model.config.vocab_size, complete, dtype=options.dtype)


if __name__ == "__main__":
    main()
