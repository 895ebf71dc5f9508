//! What people have on disk: safetensors, Hugging Face folders and the hub cache, PEFT adapters.
