"""Llama.cpp on a GGUF file, token by token, through the package llama-cpp-python."""

import ctypes
import pathlib
from typing import Any

import numpy as np
from _peers import module


class LlamaCpp:
    """A model of llama.cpp with a context."""

    def __init__(self, path: pathlib.Path, threads: int, length: int) -> None:
        self._library: Any = module("llama_cpp")
        library = self._library
        # What it says of each file that it loads is not for the table.
        self._quiet = library.llama_log_callback(lambda *_: None)
        library.llama_log_set(self._quiet, ctypes.c_void_p(0))
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        options = library.llama_context_default_params()
        options.n_ctx = length
        options.n_batch = length
        options.n_ubatch = length
        options.n_threads = threads
        options.n_threads_batch = threads
        self._context = library.llama_init_from_model(self._model, options)
        vocabulary = library.llama_model_get_vocab(self._model)
        self._size = library.llama_vocab_n_tokens(vocabulary)

    def clear(self) -> None:
        """Forget all tokens."""
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, True)

    def decode(self, tokens: list[int]) -> np.ndarray:
        """The logits after some more tokens."""
        library = self._library
        array = (library.llama_token * len(tokens))(*tokens)
        batch = library.llama_batch_get_one(array, len(tokens))
        if library.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp cannot decode these tokens")
        found = library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, (self._size,))

    def generate(self, prompt: list[int], count: int) -> None:
        """Decode greedily, `count` tokens after a prompt."""
        logits = self.decode(prompt)
        for _ in range(count):
            logits = self.decode([int(np.argmax(logits))])
