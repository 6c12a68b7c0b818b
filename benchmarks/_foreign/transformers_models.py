"""Flax models of the package `transformers` (versions before 5)."""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from _foreign._model import Foreign, Unavailable, normal, random_like, words

HIDDEN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
N_EMBD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
GROUPED = {**HIDDEN, "num_key_value_heads": 2, "max_position_embeddings": 40}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
STAGES: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
}

TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("Bert", HIDDEN),
    "RoBERTa": ("Roberta", {**HIDDEN, "max_position_embeddings": 40}),
    "DistilBERT": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "ALBERT": ("Albert", {**HIDDEN, "embedding_size": 16}),
    "ELECTRA": ("Electra", {**HIDDEN, "embedding_size": 16}),
    "RoFormer": ("RoFormer", {**HIDDEN, "embedding_size": 32}),
    "XLM-RoBERTa": ("XLMRoberta", {**HIDDEN, "max_position_embeddings": 40}),
    "BigBird": ("BigBird", {**HIDDEN, "attention_type": "original_full"}),
    "GPT-2": ("GPT2", N_EMBD),
    "GPT-Neo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 40,
        },
    ),
    "GPT-J": ("GPTJ", {**N_EMBD, "rotary_dim": 4}),
    "OPT": (
        "OPT",
        {**OPT, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
    ),
    "Llama": ("Llama", GROUPED),
    "Mistral": ("Mistral", GROUPED),
    "Gemma": ("Gemma", {**GROUPED, "head_dim": 8}),
    "BLOOM": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "CLIP text": ("CLIPText", {**HIDDEN, "max_position_embeddings": 20}),
}
IMAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", {**HIDDEN, "image_size": 16, "patch_size": 8}),
    "BEiT": ("Beit", {**HIDDEN, "image_size": 16, "patch_size": 8}),
    "DINOv2": ("Dinov2", {**OPT, "image_size": 16, "patch_size": 8}),
    "ResNet (basic)": ("ResNet", {**STAGES, "layer_type": "basic"}),
    "ResNet (bottleneck)": ("ResNet", {**STAGES, "layer_type": "bottleneck"}),
    "RegNet": ("RegNet", {**STAGES, "groups_width": 8}),
}


def _made(kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
    except ImportError as error:
        raise Unavailable("pip install 'transformers<5'") from error
    if not hasattr(transformers, f"Flax{kind}Model"):
        raise Unavailable("pip install 'transformers<5': newer ones have no Flax")
    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{kind}Config")(**options)
    network = getattr(transformers, f"Flax{kind}Model")(config, _do_init=False)
    return network, random_like(network.params_shape_tree)


def _text(kind: str, options: dict[str, Any]) -> Foreign:
    network, variables = _made(kind, {"vocab_size": 50, **options})
    inputs = words(2, 12)
    # OPT has no such argument: it drops nothing out unless it is told to.
    takes = inspect.signature(type(network).__call__).parameters
    given = {"train": False} if "train" in takes else {}

    def fn(params: Any, ids: jax.Array) -> Any:
        mask = jnp.ones(ids.shape, jnp.int32)
        return dict(network(ids, attention_mask=mask, params=params, **given))

    return Foreign(fn, variables, (inputs,))


def _image(kind: str, options: dict[str, Any]) -> Foreign:
    network, variables = _made(kind, options)
    size = options.get("image_size", 32)

    def fn(params: Any, x: jax.Array) -> Any:
        return dict(network(x, params=params, train=False))

    return Foreign(fn, variables, (normal(2, 3, size, size),))


def _bart() -> Foreign:
    options = {**SEQ2SEQ, "vocab_size": 50, "max_position_embeddings": 20}
    network, variables = _made("Bart", options)

    def fn(params: Any, ids: jax.Array, decoded: jax.Array) -> Any:
        mask = jnp.ones(ids.shape, jnp.int32)
        return network(
            ids, attention_mask=mask, decoder_input_ids=decoded, params=params
        ).last_hidden_state

    return Foreign(fn, variables, (words(2, 12), words(2, 5)))


def _whisper() -> Foreign:
    options = {
        **SEQ2SEQ,
        "vocab_size": 50,
        "max_source_positions": 20,
        "max_target_positions": 20,
        "num_mel_bins": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    network, variables = _made("Whisper", options)

    def fn(params: Any, sound: jax.Array, decoded: jax.Array) -> Any:
        return network(sound, decoded, params=params).last_hidden_state

    return Foreign(fn, variables, (normal(2, 8, 40), words(2, 5)))


TRANSFORMERS: dict[str, Callable[[], Foreign]] = {
    **{name: functools.partial(_text, *given) for name, given in TEXTS.items()},
    **{name: functools.partial(_image, *given) for name, given in IMAGES.items()},
    "BART": _bart,
    "Whisper": _whisper,
}
