"""Perceptron and convolutional networks."""

import _models

from shrinking_models._case import Case, axes, case, normed, params


@case
def mlp() -> Case:
    return Case(
        model=_models.mlp(12, 4),
        native=_models.mlp(6, 4),
        groups=params({"dense0/kernel:1": 12, "dense1/kernel:1": 6}),
        members={
            "dense0/kernel:1": axes(
                "dense0/kernel:1", "dense0/bias:0", "dense1/kernel:0"
            ),
            "dense1/kernel:1": axes(
                "dense1/kernel:1", "dense1/bias:0", "head/kernel:0"
            ),
        },
    )


@case
def vgg16() -> Case:
    convolutions = {
        f"conv{stage}_{layer}/conv/kernel:3": width
        for stage, (depth, width) in enumerate(
            [(2, 4), (2, 8), (3, 16), (3, 32), (3, 32)]
        )
        for layer in range(depth)
    }
    return Case(
        model=_models.vgg16(4, 32),
        native=_models.vgg16(2, 32),
        groups=params(convolutions | {"dense0/kernel:1": 32, "dense1/kernel:1": 32}),
        members={
            "conv0_0/conv/kernel:3": axes(*normed("conv0_0"), "conv0_1/conv/kernel:2"),
            "conv4_2/conv/kernel:3": axes(*normed("conv4_2"), "dense0/kernel:0"),
        },
    )


def _basic(depths: tuple[int, ...]) -> dict[str, int]:
    """A group for each block, and one for the stream of each stage."""
    groups = {}
    for stage, depth in enumerate(depths):
        groups[f"stage{stage}_0/conv2/conv/kernel:3"] = 4 * 2**stage
        for block in range(depth):
            groups[f"stage{stage}_{block}/conv1/conv/kernel:3"] = 4 * 2**stage
    return params(groups)


@case
def resnet18() -> Case:
    """Two blocks in the first and in the last stage; all of eighteen layers below."""
    depths = (2, 1, 1, 2)
    return Case(
        model=_models.resnet18(4, 32, depths),
        native=_models.resnet18(2, 32, depths),
        groups=_basic(depths),
        members={
            "stage0_1/conv1/conv/kernel:3": axes(
                *normed("stage0_1/conv1"), "stage0_1/conv2/conv/kernel:2"
            ),
            # The stem adds to the first stage, whose blocks have no projection.
            "stage0_0/conv2/conv/kernel:3": axes(
                *normed("stem", "stage0_0/conv2", "stage0_1/conv2"),
                "stage0_0/conv1/conv/kernel:2",
                "stage0_1/conv1/conv/kernel:2",
                "stage1_0/conv1/conv/kernel:2",
                "stage1_0/shortcut/conv/kernel:2",
            ),
            "stage3_0/conv2/conv/kernel:3": axes(
                *normed("stage3_0/conv2", "stage3_0/shortcut", "stage3_1/conv2"),
                "stage3_1/conv1/conv/kernel:2",
                "head/kernel:0",
            ),
        },
    )


@case
def resnet50() -> Case:
    """Bottlenecks, two blocks in the first of two stages; all fifty below."""
    return Case(
        model=_models.resnet50(4, 16, (2, 1)),
        native=_models.resnet50(2, 16, (2, 1)),
        groups=_bottlenecks((2, 1)),
        members={
            "stem/conv/kernel:3": axes(
                *normed("stem"),
                "stage0_0/conv1/conv/kernel:2",
                "stage0_0/shortcut/conv/kernel:2",
            ),
            "stage0_0/conv3/conv/kernel:3": axes(
                *normed("stage0_0/conv3", "stage0_0/shortcut", "stage0_1/conv3"),
                "stage0_1/conv1/conv/kernel:2",
                "stage1_0/conv1/conv/kernel:2",
                "stage1_0/shortcut/conv/kernel:2",
            ),
        },
    )


def _bottlenecks(depths: tuple[int, ...]) -> dict[str, int]:
    groups = {"stem/conv/kernel:3": 4}
    for stage, depth in enumerate(depths):
        width = 4 * 2**stage
        groups[f"stage{stage}_0/conv3/conv/kernel:3"] = 4 * width
        for block in range(depth):
            groups[f"stage{stage}_{block}/conv1/conv/kernel:3"] = width
            groups[f"stage{stage}_{block}/conv2/conv/kernel:3"] = width
    return params(groups)


WHOLE = (
    (_models.resnet18(4, 32), _basic((2, 2, 2, 2))),
    (_models.resnet50(4, 32), _bottlenecks((3, 4, 6, 3))),
)
"""All layers of the residual networks, and their groups: many to compile here."""


@case
def mobilenet() -> Case:
    stages = ((1, 0.5, 1, 1), (6, 0.75, 2, 2))
    return Case(
        model=_models.mobilenet(8, 16, stages),
        native=_models.mobilenet(4, 16, stages),
        groups=params(
            {
                "stage0_0/depthwise/conv/kernel:3": 8,
                "stage0_0/project/conv/kernel:3": 4,
                "stage1_0/depthwise/conv/kernel:3": 24,
                "stage1_0/project/conv/kernel:3": 6,
                "stage1_1/depthwise/conv/kernel:3": 36,
                "last/conv/kernel:3": 320,
            }
        ),
        members={
            "stage0_0/depthwise/conv/kernel:3": axes(
                *normed("stem", "stage0_0/depthwise"), "stage0_0/project/conv/kernel:2"
            ),
            "stage1_1/depthwise/conv/kernel:3": axes(
                *normed("stage1_1/expand", "stage1_1/depthwise"),
                "stage1_1/project/conv/kernel:2",
            ),
            "stage1_0/project/conv/kernel:3": axes(
                *normed("stage1_0/project", "stage1_1/project"),
                "stage1_1/expand/conv/kernel:2",
                "last/conv/kernel:2",
            ),
        },
    )


@case
def efficientnet() -> Case:
    stages = ((1, 0.5, 1, 1), (6, 0.75, 2, 2))
    return Case(
        model=_models.efficientnet(8, 16, stages),
        native=_models.efficientnet(4, 16, stages),
        groups=params(
            {
                "stage0_0/depthwise/conv/kernel:3": 8,
                "stage0_0/squeeze/kernel:3": 2,
                "stage0_0/project/conv/kernel:3": 4,
                "stage1_0/depthwise/conv/kernel:3": 24,
                "stage1_0/squeeze/kernel:3": 6,
                "stage1_0/project/conv/kernel:3": 6,
                "stage1_1/depthwise/conv/kernel:3": 36,
                "stage1_1/squeeze/kernel:3": 9,
                "last/conv/kernel:3": 320,
            }
        ),
        members={
            "stage1_0/squeeze/kernel:3": axes(
                "stage1_0/squeeze/kernel:3",
                "stage1_0/squeeze/bias:0",
                "stage1_0/excite/kernel:2",
            ),
            "stage1_0/depthwise/conv/kernel:3": axes(
                *normed("stage1_0/expand", "stage1_0/depthwise"),
                "stage1_0/squeeze/kernel:2",
                "stage1_0/excite/kernel:3",
                "stage1_0/excite/bias:0",
                "stage1_0/project/conv/kernel:2",
            ),
        },
    )


def _part(count: int, layer: str, conv: str, width: int) -> list[str]:
    """A part of a batch normalization's axes and of the inputs behind it."""
    leaves = [f"{layer}/norm/{leaf}:0" for leaf in ("scale", "bias")]
    leaves += [f"batch_stats/{layer}/norm/{leaf}:0" for leaf in ("mean", "var")]
    return [f"{leaf}({count}/{width})" for leaf in (*leaves, conv)]


@case
def densenet() -> Case:
    layers = ("block0_0", "block0_1", "block1_0", "block1_1")
    return Case(
        model=_models.densenet(4, 8, (2, 2)),
        native=_models.densenet(2, 8, (2, 2)),
        groups=params(
            {"stem/kernel:3": 8, "transition1/conv/kernel:3": 8}
            | {f"{layer}_in/conv/kernel:3": 16 for layer in layers}
            | {f"{layer}_out/conv/kernel:3": 4 for layer in layers}
        ),
        members={
            "block0_1_in/conv/kernel:3": axes(
                "block0_1_in/conv/kernel:3",
                "block0_1_out/conv/kernel:2",
                "block0_1_out/norm/scale:0",
                "block0_1_out/norm/bias:0",
                "batch_stats/block0_1_out/norm/mean:0",
                "batch_stats/block0_1_out/norm/var:0",
            ),
            "block0_0_out/conv/kernel:3": axes(
                "block0_0_out/conv/kernel:3",
                *_part(4, "block0_1_in", "block0_1_in/conv/kernel:2", 12),
                *_part(4, "transition1", "transition1/conv/kernel:2", 16),
            ),
        },
    )


@case
def unet() -> Case:
    pairs = {"down0": 4, "down1": 8, "bottom": 16, "up1": 8, "up0": 4}
    return Case(
        model=_models.unet(4, 8, 2),
        native=_models.unet(2, 8, 2),
        groups=params(
            {"rise0/kernel:3": 4, "rise1/kernel:3": 8}
            | {
                f"{name}_{number}/conv/kernel:3": width
                for name, width in pairs.items()
                for number in (0, 1)
            }
        ),
        members={
            "down1_1/conv/kernel:3": axes(
                *normed("down1_1"),
                "bottom_0/conv/kernel:2",
                "up1_0/conv/kernel:2(8/16)",
            ),
            "rise1/kernel:3": axes(
                "rise1/kernel:3", "rise1/bias:0", "up1_0/conv/kernel:2(8/16)"
            ),
        },
    )
