"""llama.cpp through its C API, bf16.

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" pip install --no-binary llama-cpp-python llama-cpp-python
    python benches/peers/llama_model.py FILE.gguf --threads 4 [--flash]

The file comes from `checkpoint.py --gguf`. Built from source on the machine that runs it, so that its bf16 kernels
use what the processor has; the record keeps what llama.cpp says it uses.
"""

import ctypes

import llama_cpp
import numpy

import measure


def main():
    parser = measure.arguments()
    parser.add_argument("--flash", action="store_true", help="flash attention")
    options = parser.parse_args()
    quiet = llama_cpp.llama_log_callback(lambda *_: None)  # must outlive its last call
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(options.model).encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def context(sequences):
        params = llama_cpp.llama_context_default_params()
        length = measure.CONTEXT + measure.WARM_UP + measure.STEPS
        params.n_ctx = sequences * -(-length // 64) * 64 * 4
        params.n_batch = params.n_ubatch = measure.CONTEXT
        params.n_seq_max = sequences
        params.kv_unified = False
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = 1 if options.flash else 0
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F16
        return llama_cpp.llama_init_from_model(model, params)

    def forward(ctx, rows):
        """One pass over (token, position, sequence, wants logits); the likeliest token per wanted row."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        if llama_cpp.llama_decode(ctx, batch) != 0:
            raise RuntimeError("llama_decode failed")
        picked = []
        for at, row in enumerate(rows):
            if row[3]:
                logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, at), (vocab,))
                picked.append(int(logits.argmax()))
        llama_cpp.llama_batch_free(batch)
        return picked

    def prompt_rows(sequence, number):
        tokens = measure.prompt(vocab, number)
        return [(token, at, sequence, at + 1 == len(tokens)) for at, token in enumerate(tokens)]

    def decode(batch):
        ctx = context(batch)
        memory = llama_cpp.llama_get_memory(ctx)
        for sequence in range(batch):
            forward(ctx, prompt_rows(sequence, sequence))
        for _ in range(options.rounds):
            for sequence in range(batch):
                llama_cpp.llama_memory_seq_rm(memory, sequence, measure.CONTEXT, -1)
            picked = list(range(batch))

            def step(at):
                nonlocal picked
                rows = [(token, measure.CONTEXT + at, sequence, True) for sequence, token in enumerate(picked)]
                picked = forward(ctx, rows)

            yield step
        llama_cpp.llama_free(ctx)

    ctx = context(1)

    def prefill(number):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
        forward(ctx, prompt_rows(0, number))

    features = llama_cpp.llama_print_system_info().decode()
    name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})" + (", flash attention" if options.flash else "")
    measure.run(name, options, decode, prefill, dtype="bf16, f16 cache", features=features)


if __name__ == "__main__":
    main()
