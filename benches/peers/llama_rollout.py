"""Many sequences at once in llama.cpp through its C API, bf16: as its llama-batched-bench, with the likeliest token.

    python benches/peers/llama_rollout.py FILE.gguf --threads 4 [--flash] [--unified]

The file comes from `smollm2.py --gguf`; llama_model.py says how to build the package.
"""

import ctypes

import llama_cpp
import numpy

import many

BATCH = 512


def main():
    parser = many.arguments()
    parser.add_argument("--flash", action="store_true", help="flash attention")
    parser.add_argument("--unified", action="store_true", help="one cache for all sequences")
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must outlive its last call
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(options.model).encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = many.SEQUENCES * 512
    params.n_batch = params.n_ubatch = BATCH
    params.n_seq_max = many.SEQUENCES
    params.kv_unified = options.unified
    params.n_threads = params.n_threads_batch = options.threads
    params.flash_attn_type = 1 if options.flash else 0
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F16
    ctx = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def forward(rows):
        """One pass over (token, position, sequence, wants logits); each wanted sequence with its likeliest token."""
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if llama_cpp.llama_decode(ctx, batch) != 0:
            raise RuntimeError("llama_decode failed")
        wanted = [sequence for _, _, sequence, wanted in rows if wanted]
        if not wanted:
            return []
        logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), (len(wanted), vocab))
        return zip(wanted, logits.argmax(-1).tolist(), strict=True)

    def complete(prompts, new):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
        rows = [
            (token, at, sequence, at + 1 == len(tokens))
            for sequence, tokens in enumerate(prompts)
            for at, token in enumerate(tokens)
        ]
        completions = [[] for _ in prompts]
        for first in range(0, len(rows), BATCH):
            for sequence, token in forward(rows[first : first + BATCH]):
                completions[sequence].append(token)
        for step in range(new - 1):
            rows = [
                (tokens[-1], len(prompts[sequence]) + step, sequence, True)
                for sequence, tokens in enumerate(completions)
            ]
            for sequence, token in forward(rows):
                completions[sequence].append(token)
        return completions

    features = llama_cpp.llama_print_system_info().decode()
    name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})" + (", flash attention" if options.flash else "")
    name += ", one cache" if options.unified else ""
    many.run(name, options, vocab, complete, dtype="bf16, f16 cache", features=features)


if __name__ == "__main__":
    main()
