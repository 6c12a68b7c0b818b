"""Rules: which sites a predicate matches, which rule wins, what each error says."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jcompress.errors import MismatchError
from jcompress.rules import AllOf, AnyOf, AtLeast, Not, Resolved, matches, resolve
from jcompress.sites import Operation, Site, Sites, find_sites


def site(
    path: str,
    operation: Operation = Operation.DOT,
    shape: tuple[int, ...] = (8, 4),
    location: tuple[int, ...] = (0,),
) -> Site:
    return Site(
        path=path,
        operation=operation,
        primitive="dot_general",
        shape=shape,
        dtype=np.dtype("float32"),
        output_axes=tuple(range(len(shape))),
        location=location,
    )


def table(*sites: Site, idle: Sequence[str] = ()) -> Sites:
    shapes = {s.path: s.shape for s in sites} | dict.fromkeys(idle, (3,))
    leaves = tuple(
        (path, jax.ShapeDtypeStruct(shape, np.float32))
        for path, shape in shapes.items()
    )
    return Sites(tuple(sites), leaves)


EMBED = site("params/embed/table", Operation.LOOKUP, (50, 4), (0,))
UP = site("params/block/up/kernel", shape=(4, 16), location=(1,))
BIAS = site("params/block/up/bias", Operation.ELEMENTWISE, (16,), (2,))
DOWN = site("params/block/down/kernel", shape=(16, 4), location=(3,))
CONV = site("params/conv/kernel", Operation.CONV, (3, 3, 4, 4), (4,))
LOGITS = site("params/embed/table", Operation.DOT, (50, 4), (5,))
SITES = table(EMBED, UP, BIAS, DOWN, CONV, LOGITS, idle=["params/idle"])
WEIGHTS = (
    "params/embed/table",
    "params/block/up/kernel",
    "params/block/down/kernel",
    "params/conv/kernel",
)


def run(*rules: Any, sites: Sites = SITES) -> Resolved[Any]:
    return resolve(list(rules), sites, transform="prune")


def message(*rules: Any, sites: Sites = SITES) -> str:
    with pytest.raises(MismatchError) as error:
        run(*rules, sites=sites)
    text = str(error.value)
    assert text.startswith("prune: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("kernel", "kernel", True),
        ("kernel", "a/kernel", False),
        ("*", "kernel", True),
        ("*", "a/kernel", False),
        ("*/kernel", "a/kernel", True),
        ("*/kernel", "a/b/kernel", False),
        ("**", "a/b/kernel", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "a/b/kernel", True),
        ("**/kernel", "a/b/the_kernel", False),
        ("a/**/kernel", "a/kernel", True),
        ("a/**/kernel", "a/b/c/kernel", True),
        ("a/**/kernel", "ab/kernel", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**", "ab/c", False),
        ("Dense_?/w", "Dense_0/w", True),
        ("Dense_?/w", "Dense_10/w", False),
        ("a?b", "a/b", False),
        ("Dense_*/w", "Dense_10/w", True),
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("mlp/~/linear_[0]/w", "mlp/~/linear_[0]/w", True),
        ("linear_[01]/w", "linear_0/w", False),
        ("a+b(c)|d$", "a+b(c)|d$", True),
        ("KERNEL", "kernel", False),
        ("", "kernel", False),
        ("kernel", "kernel\n", False),
        ("*", "ker\nnel", True),
        ("***", "a/b", True),
        ("**/**/kernel", "kernel", True),
    ],
)
def test_globs(glob: str, path: str, expected: bool) -> None:
    assert matches(glob, site(path)) is expected


def test_predicates() -> None:
    assert matches(..., UP)
    assert matches(Operation.DOT, UP)
    assert not matches(Operation.CONV, UP)
    assert matches(lambda s: s.shape[0] == 4, UP)
    assert matches(lambda s: np.bool_(True), UP) is True
    assert matches(AtLeast(64), UP)
    assert not matches(AtLeast(65), UP)
    assert matches(AtLeast(0), site("scalar", shape=()))


def test_combined_predicates() -> None:
    kernel = "**/kernel"
    assert matches(Not(Operation.CONV), UP)
    assert not matches(Not(Operation.CONV), CONV)
    assert not matches(Not(...), UP)
    assert matches(AllOf(kernel, Operation.DOT, AtLeast(10)), UP)
    assert not matches(AllOf(kernel, Operation.DOT), CONV)
    assert matches(AnyOf(Operation.LOOKUP, Operation.CONV), CONV)
    assert not matches(AnyOf(Operation.LOOKUP, Operation.CONV), UP)
    assert matches(AllOf(), UP)
    assert not matches(AnyOf(), UP)
    deep = AllOf(AnyOf(Not("**/up/*"), lambda s: s.size > 10**6), Not(AtLeast(65)))
    assert [s.path for s in SITES if matches(deep, s)] == [
        "params/block/down/kernel",
    ]


def test_combined_predicates_are_values() -> None:
    first, second = AllOf("a", AtLeast(3)), AllOf("a", AtLeast(3))
    assert first == second
    assert hash(first) == hash(second)
    assert first != AnyOf("a", AtLeast(3))
    assert AnyOf("a") != AnyOf("b")
    assert Not("a") == Not("a")
    assert repr(first) == "AllOf('a', AtLeast(size=3))"
    assert repr(AnyOf(..., Not(Operation.DOT))) == (
        "AnyOf(Ellipsis, Not(predicate=Operation.DOT))"
    )


def test_everything() -> None:
    resolved = run((..., "spec"))
    assert tuple(resolved.leaves) == WEIGHTS
    assert set(resolved.leaves.values()) == {"spec"}
    assert set(resolved.rule_of.values()) == {0}
    assert resolved.skipped == {}


def test_the_first_match_wins() -> None:
    resolved = run(("**/up/*", "a"), ("params/block/**", "b"), (..., "c"))
    assert resolved.leaves == {
        "params/embed/table": "c",
        "params/block/up/kernel": "a",
        "params/block/down/kernel": "b",
        "params/conv/kernel": "c",
    }
    assert resolved.rule_of == {
        "params/embed/table": 2,
        "params/block/up/kernel": 0,
        "params/block/down/kernel": 1,
        "params/conv/kernel": 2,
    }


def test_leaves_come_in_tree_order() -> None:
    resolved = run(("**/conv/*", 1), ("**/down/*", 2), (..., 3))
    assert tuple(resolved.leaves) == tuple(resolved.rule_of) == WEIGHTS


def test_none_leaves_alone() -> None:
    resolved = run(("**/embed/**", None), ("**/block/**", "spec"))
    assert resolved.leaves == {
        "params/block/up/kernel": "spec",
        "params/block/down/kernel": "spec",
    }
    assert resolved.skipped == {
        "params/embed/table": "excluded by rule 0 ('**/embed/**')",
        "params/conv/kernel": "no rule matches it",
    }
    assert "params/embed/table" not in resolved.rule_of


def test_specs_that_are_false_are_specs() -> None:
    assert set(run((..., 0)).leaves.values()) == {0}
    assert set(run((..., ())).leaves.values()) == {()}


def test_a_leaf_with_two_sites_takes_one_rule() -> None:
    resolved = run((Operation.LOOKUP, "lookup"), ("**/up/*", "up"))
    assert resolved.leaves["params/embed/table"] == "lookup"
    assert resolved.rule_of["params/embed/table"] == 0
    # A rule for its other site alone would do nothing, so it does not pass in silence.
    with pytest.raises(MismatchError, match="already took: params/embed/table"):
        run((Operation.LOOKUP, "lookup"), (tied_product, "dot"))


def tied_product(site: Site) -> bool:
    return site.operation is Operation.DOT and site.path == "params/embed/table"


def test_a_leaf_with_two_sites_is_left_alone_as_a_whole() -> None:
    resolved = run((Operation.LOOKUP, None), (Operation.DOT, "dot"))
    assert "params/embed/table" not in resolved.leaves
    assert "params/block/up/kernel" in resolved.leaves


def test_two_leaves_at_one_site() -> None:
    """A product of which two leaves are parts (concatenated kernels)."""
    both = table(site("a", location=(1,)), site("b", location=(1,)))
    assert run((..., "x"), sites=both).leaves == {"a": "x", "b": "x"}
    different = run(("a", "x"), ("b", "y"), sites=both)
    assert different.leaves == {"a": "x", "b": "y"}


def test_a_tuple_of_rules() -> None:
    assert resolve(((..., 1),), SITES, transform="prune").leaves


def test_a_rule_that_matches_nothing() -> None:
    text = message(("**/missing", "spec"), (..., "spec"))
    assert "rule 0 ('**/missing') matches no weight" in text
    assert all(path in text for path in WEIGHTS)


def test_the_index_of_the_rule_is_right() -> None:
    text = message(("**/up/*", "spec"), (Operation.RAGGED_DOT, "spec"))
    assert "rule 1 (Operation.RAGGED_DOT) matches no weight" in text


def test_a_rule_that_matches_only_biases() -> None:
    text = message(("**/bias", "spec"))
    assert "rule 0 ('**/bias')" in text
    assert "params/block/up/bias" in text
    assert "no product or lookup uses" in text
    assert all(path in text for path in WEIGHTS)


def test_a_rule_for_elementwise_uses() -> None:
    assert "params/block/up/bias" in message((Operation.ELEMENTWISE, "spec"))


def test_a_rule_that_matches_only_unused_leaves() -> None:
    text = message(("**/idle", "spec"))
    assert "meet no data: params/idle" in text


def test_only_the_unused_leaves_that_match_are_named() -> None:
    sites = table(UP, idle=["params/idle", "params/other"])
    text = message(("**/idle", "spec"), sites=sites)
    assert "params/idle" in text
    assert "params/other" not in text


def test_a_rule_that_matches_nothing_beside_unused_leaves() -> None:
    text = message((lambda s: s.size > 10**9, "spec"))
    assert "matches no weight; the weights are" in text


def test_long_lists_are_cut() -> None:
    sites = table(*(site(f"layer_{i}/w", location=(i,)) for i in range(20)))
    text = message(("nothing", "spec"), sites=sites)
    assert "layer_7/w" in text
    assert "layer_8/w" not in text
    assert "(12 more)" in text


def test_a_shadowed_rule() -> None:
    text = message(("**/block/**", "a"), ("**/up/kernel", "b"))
    assert "rule 1 ('**/up/kernel')" in text
    assert "earlier rules already took: params/block/up/kernel" in text
    assert "down" not in text


def test_a_rule_shadowed_by_an_exclusion() -> None:
    assert "rule 1" in message((..., None), ("**/up/kernel", "b"))


def test_a_rule_behind_everything() -> None:
    assert "rule 1 (Ellipsis)" in message((..., "a"), (..., "b"))


def test_a_shadowed_leaf_is_named_once() -> None:
    text = message((..., "a"), ("**/table", "b"))
    assert text.count("params/embed/table") == 1


def test_nothing_to_do() -> None:
    text = message((..., None))
    assert "nothing to do" in text
    assert all(path in text for path in WEIGHTS)
    assert "excluded by rule 0" in text
    text = message(("**/conv/*", None))
    assert "params/conv/kernel: excluded by rule 0" in text
    assert "params/embed/table: no rule matches it" in text


def test_a_tree_without_weights() -> None:
    text = message((..., "spec"), sites=table(BIAS, idle=["params/idle"]))
    assert "no leaf of the tree is a weight" in text
    assert "params/block/up/bias" in text
    assert "params/idle" in text


@pytest.mark.parametrize(
    "rules",
    [
        "**/kernel",
        None,
        {"**/kernel": "spec"},
        3,
        lambda site: True,
        iter([(..., "spec")]),
    ],
)
def test_rules_that_are_no_sequence(rules: Any) -> None:
    with pytest.raises(TypeError, match=r"prune: rules are a list of pairs.*, not "):
        resolve(rules, SITES, transform="prune")


@pytest.mark.parametrize(
    "rule", ["ab", (...,), (..., 1, 2), [..., 1], None, Operation.DOT, {"a": 1, "b": 2}]
)
def test_rules_that_are_no_pairs(rule: Any) -> None:
    with pytest.raises(TypeError, match=r"prune: .*pairs.*; rule 1 is "):
        run((..., "spec"), rule)


def test_a_pair_without_its_list() -> None:
    """The likeliest slip: one rule, given bare."""
    with pytest.raises(TypeError, match=r"rule 0 is '\*\*/kernel'"):
        resolve(("**/kernel", "spec"), SITES, transform="prune")  # type: ignore[arg-type]


def test_no_rules() -> None:
    assert "empty" in message()


@pytest.mark.parametrize("predicate", [3, None, ("a", "b"), True, b"**/kernel"])
def test_predicates_of_no_known_kind(predicate: Any) -> None:
    with pytest.raises(TypeError, match=r"prune: the predicate of rule 1 is .*glob"):
        run((..., "spec"), (predicate, "spec"))


def test_an_error_in_a_predicate_comes_through() -> None:
    def broken(site: Site) -> bool:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run((broken, "spec"))


def test_a_rule_error_is_a_value_error() -> None:
    assert issubclass(MismatchError, ValueError)


def test_the_transform_is_named() -> None:
    with pytest.raises(MismatchError, match=r"^fake_quant: "):
        resolve([("x", 1)], SITES, transform="fake_quant")


class Kind:
    """Neither a name nor a use of a leaf."""


@pytest.mark.parametrize(
    "predicate", [Kind, nnx.Param, Operation, nnx.All(nnx.Param), ["w"], lambda a, b: 1]
)
def test_a_predicate_of_another_kind_is_refused(predicate: Any) -> None:
    sites = find_sites(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones(3))
    with pytest.raises(TypeError, match=r"t: the predicate of rule 0 is .* path glob"):
        resolve([(predicate, 1)], sites, transform="t")
    for combine in (Not, AllOf, AnyOf):
        with pytest.raises(TypeError, match=f"{combine.__name__}: .* path glob"):
            combine(predicate)


def test_a_class_is_no_spec() -> None:
    sites = find_sites(lambda p, x: x @ p["w"], {"w": jnp.ones((3, 2))}, jnp.ones(3))
    with pytest.raises(TypeError, match=r"class Kind; give an object of it, Kind\("):
        resolve([(..., Kind)], sites, transform="t")
