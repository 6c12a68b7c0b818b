"""Transformers, mixers and recurrent networks."""

from collections.abc import Callable
from typing import Any

import _models

from shrinking_models._case import Case, axes, case, params


def _layers(table: dict[str, int], depth: int = 2) -> dict[str, int]:
    """A table of groups in which `#` stands for the layer's number."""
    return {
        name.replace("#", str(layer)): size
        for layer in range(depth)
        for name, size in table.items()
    }


@case
def vit() -> Case:
    heads = {
        "attention#/key/kernel:1": 4,
        "attention#/key/kernel:2": 6,
        "attention#/value/kernel:2": 6,
    }
    stream = "params/attention0/out/kernel:2"
    sizes: dict[str, Any] = {"image": 8, "head_size": 6, "depth": 2, "patch": 4}
    return Case(
        model=_models.vit(12, heads=4, hidden=20, **sizes),
        native=_models.vit(6, heads=2, hidden=10, **sizes),
        uncut=frozenset(
            params(_layers({n: 0 for n in heads if not n.endswith("key/kernel:1")}))
        ),
        groups={stream: 12} | params(_layers({**heads, "mlp#/up/kernel:1": 20})),
        opt_in=frozenset({stream}),
        members={
            "attention0/key/kernel:1": axes(
                *(f"attention0/{n}/kernel:1" for n in ("query", "key", "value")),
                *(f"attention0/{n}/bias:0" for n in ("query", "key", "value")),
                "attention0/out/kernel:0",
            ),
            "attention0/key/kernel:2": axes(
                *(f"attention0/{n}/kernel:2" for n in ("query", "key")),
                *(f"attention0/{n}/bias:1" for n in ("query", "key")),
            ),
            "attention0/value/kernel:2": axes(
                "attention0/value/kernel:2",
                "attention0/value/bias:1",
                "attention0/out/kernel:1",
            ),
            "attention0/out/kernel:2": axes(
                "patches/conv/kernel:3",
                "patches/conv/bias:0",
                "token:2",
                "places:2",
                "head/kernel:0",
                "norm/scale:0",
                "norm/bias:0",
                *(
                    name.replace("#", str(layer))
                    for layer in (0, 1)
                    for name in (
                        *(
                            f"norm#_{n}/{p}:0"
                            for n in (1, 2)
                            for p in ("scale", "bias")
                        ),
                        *(
                            f"attention#/{n}/kernel:0"
                            for n in ("query", "key", "value")
                        ),
                        "attention#/out/kernel:2",
                        "attention#/out/bias:0",
                        "mlp#/up/kernel:0",
                        "mlp#/down/kernel:1",
                        "mlp#/down/bias:0",
                    )
                ),
            ),
        },
    )


@case
def bert() -> Case:
    """Heads are cut out of flat products, which keep the sizes within them."""
    stream = "params/kind/embedding:1"
    sizes: dict[str, Any] = {"head_size": 4, "depth": 2, "words": 15, "places": 7}
    return Case(
        model=_models.bert(12, 5, 4, hidden=20, **sizes),
        native=_models.bert(6, 5, 2, hidden=10, **sizes),
        groups={stream: 12}
        | params({"pooler/kernel:1": 12})
        | params(_layers({"layer#_key/kernel:1": 4, "layer#_mlp/up/kernel:1": 20})),
        opt_in=frozenset({stream}),
        members={
            "layer1_key/kernel:1": axes(
                *(f"layer1_{n}/kernel:1" for n in ("query", "key", "value")),
                *(f"layer1_{n}/bias:0" for n in ("query", "key", "value")),
                "layer1_out/kernel:0",
            ),
            "pooler/kernel:1": axes(
                "pooler/kernel:1", "pooler/bias:0", "head/kernel:0"
            ),
        },
    )


@case
def mixer() -> Case:
    stream = "params/features0/down/kernel:1"
    sizes: dict[str, Any] = {"image": 8, "depth": 2, "patch": 4}
    return Case(
        model=_models.mixer(12, hidden=20, mixing=6, **sizes),
        native=_models.mixer(6, hidden=10, mixing=3, **sizes),
        groups={stream: 12}
        | params(_layers({"features#/up/kernel:1": 20, "patches#/up/kernel:1": 6})),
        opt_in=frozenset({stream}),
        members={
            "patches0/up/kernel:1": axes(
                "patches0/up/kernel:1", "patches0/up/bias:0", "patches0/down/kernel:0"
            ),
        },
    )


@case
def gpt() -> Case:
    """A key's head goes with its value's and with all queries that share it."""
    stream = "params/embed/embedding:1"
    heads = {
        "layer#/attention/key/kernel:1": 2,
        # Rotation turns two features of a query and of a key by one angle.
        "layer#/attention/key/kernel:2": 4,
        "layer#/attention/value/kernel:2": 8,
    }
    sizes: dict[str, Any] = {"length": 5, "head_size": 8, "depth": 2, "words": 15}
    return Case(
        model=_models.gpt(12, heads=4, shared=2, hidden=20, **sizes),
        native=_models.gpt(6, heads=2, shared=1, hidden=10, **sizes),
        uncut=frozenset(
            params(_layers({n: 0 for n in heads if n.endswith("kernel:2")}))
        ),
        groups={stream: 12} | params(_layers({**heads, "layer#/gate/kernel:1": 20})),
        opt_in=frozenset({stream}),
        members={
            "layer0/attention/key/kernel:1": axes(
                *(f"layer0/attention/{n}/kernel:1" for n in ("query", "key", "value")),
                "layer0/attention/out/kernel:0",
            ),
            "layer0/attention/key/kernel:2": axes(
                "layer0/attention/query/kernel:2", "layer0/attention/key/kernel:2"
            ),
            "layer0/gate/kernel:1": axes(
                "layer0/gate/kernel:1", "layer0/up/kernel:1", "layer0/down/kernel:0"
            ),
        },
    )


@case
def gpt_fused() -> Case:
    """One product for queries, keys and values: of its factors the heads shrink."""
    stream = "params/embed/embedding:1"
    sizes: dict[str, Any] = {
        "length": 5,
        "head_size": 8,
        "depth": 1,
        "words": 15,
        "fused": True,
    }
    return Case(
        model=_models.gpt(12, heads=4, shared=4, hidden=20, **sizes),
        native=_models.gpt(6, heads=2, shared=2, hidden=10, **sizes),
        groups={stream: 12}
        | params({"layer0/attention/qkv/kernel:1": 4, "layer0/gate/kernel:1": 20}),
        opt_in=frozenset({stream}),
        members={
            "layer0/attention/qkv/kernel:1": axes(
                "layer0/attention/qkv/kernel:1", "layer0/attention/out/kernel:0"
            ),
        },
    )


@case
def gpt_scanned() -> Case:
    """Layers in a scan: each group is in all of them, and the layers are one, too."""
    stream, stack = "params/embed/embedding:1", "params/layers/attention/key/kernel:0"
    sizes: dict[str, Any] = {"length": 5, "head_size": 8, "words": 15, "scanned": True}
    top = "layers/attention"
    return Case(
        model=_models.gpt(12, heads=4, shared=2, hidden=20, depth=4, **sizes),
        native=_models.gpt(6, heads=2, shared=1, hidden=10, depth=2, **sizes),
        uncut=frozenset(params({f"{top}/key/kernel:3": 0, f"{top}/value/kernel:3": 0})),
        groups={stream: 12, stack: 4}
        | params(
            {
                f"{top}/key/kernel:2": 2,
                f"{top}/key/kernel:3": 4,
                f"{top}/value/kernel:3": 8,
                "layers/gate/kernel:2": 20,
            }
        ),
        opt_in=frozenset({stream, stack}),
        members={
            f"{top}/key/kernel:0": axes(
                *(f"{top}/{n}/kernel:0" for n in ("query", "key", "value", "out")),
                *(f"layers/{n}/kernel:0" for n in ("gate", "up", "down")),
                *(f"layers/{n}/scale:0" for n in ("norm1", "norm2")),
            ),
        },
    )


def _recurrent(build: Callable[..., Any], name: str, inputs: str, states: str) -> Case:
    """A cell's state is what it multiplies, what it makes and what comes after it."""

    def state(layer: int, after: frozenset[str]) -> frozenset[str]:
        cell = f"cell{layer}"
        biases = states if name == "hf" else inputs
        return after | axes(
            *(f"{cell}/i{g}/kernel:1" for g in inputs),
            *(f"{cell}/h{g}/kernel:{axis}" for g in states for axis in (0, 1)),
            *(f"{cell}/{'h' if name == 'hf' else 'i'}{g}/bias:0" for g in biases),
            *(() if name == "hf" else (f"{cell}/hn/bias:0",)),
        )

    return Case(
        model=build(6, 5, 3),
        native=build(3, 5, 3),
        groups=params({f"cell{layer}/{name}/kernel:1": 6 for layer in (0, 1)}),
        members={
            f"cell0/{name}/kernel:1": state(
                0, axes(*(f"cell1/i{g}/kernel:0" for g in inputs))
            ),
            f"cell1/{name}/kernel:1": state(1, axes("head/kernel:0")),
        },
    )


@case
def lstm() -> Case:
    return _recurrent(_models.lstm, "hf", "ifgo", "ifgo")


@case
def gru() -> Case:
    return _recurrent(_models.gru, "hn", "rzn", "rzn")
