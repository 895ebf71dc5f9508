"""transformers on PyTorch, bf16 on the CPU (oneDNN).

    python benches/peers/torch_model.py FOLDER --threads 4 [--cache dynamic|static] [--compile]

Needs torch and transformers (tests/golden/requirements.txt names the versions).
"""

import copy

import torch
import transformers

import measure


def main():
    parser = measure.arguments()
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--compile", action="store_true", help="torch.compile the forward pass")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    vocab = model.config.vocab_size
    forward = torch.compile(model) if options.compile else model

    def tokens(batch, first=0):
        return torch.tensor([measure.prompt(vocab, first + sequence) for sequence in range(batch)])

    def new_cache():
        if options.cache == "dynamic":
            return transformers.DynamicCache(config=model.config)
        length = measure.CONTEXT + measure.WARM_UP + measure.STEPS
        return transformers.StaticCache(config=model.config, max_cache_len=length)

    def decode(batch):
        context = new_cache()
        model(tokens(batch), past_key_values=context, use_cache=True, logits_to_keep=1)
        for _ in range(options.rounds):
            cache, picked = copy.deepcopy(context), torch.arange(batch)[:, None]

            def step(at):
                nonlocal picked
                positions = torch.full((batch, 1), measure.CONTEXT + at)
                out = forward(picked, past_key_values=cache, position_ids=positions, use_cache=True, logits_to_keep=1)
                picked = out.logits[:, -1].argmax(-1, keepdim=True)
                picked.tolist()

            yield step

    def prefill(number):
        out = forward(tokens(1, number), past_key_values=new_cache(), use_cache=True, logits_to_keep=1)
        out.logits[:, -1].argmax(-1).tolist()

    name = f"torch {torch.__version__}, {options.cache} cache" + (", compiled" if options.compile else "")
    with torch.inference_mode():
        measure.run(name, options, decode, prefill, dtype="bf16", transformers=transformers.__version__)


if __name__ == "__main__":
    main()
