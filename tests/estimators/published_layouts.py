"""Names and shapes in the published checkpoints, and SMPL's file: written down from the networks'
descriptions, without looking at our modules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
LEAF_VERTICES = [411, 2445, 5905, 3216, 6617]
VERTICES, FACES = 6890, 13776


def convolution(name: str, out: int, inputs: int, kernel: int, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (out, inputs, kernel, kernel)}
    return shapes | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    rows = ("weight", "bias", "running_mean", "running_var")
    shapes: Shapes = {f"{name}.{row}": (channels,) for row in rows}
    return shapes | {f"{name}.num_batches_tracked": ()}


def linear(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def downsample(name: str, out: int, inputs: int) -> Shapes:
    return convolution(f"{name}.downsample.0", out, inputs, 1) | norm(f"{name}.downsample.1", out)


def bottlenecks(name: str, inputs: int, width: int, blocks: int) -> Shapes:
    shapes: Shapes = {}
    for block in range(blocks):
        at = f"{name}.{block}"
        first = inputs if block == 0 else 4 * width
        for number, (out, into, kernel) in enumerate(
            [(width, first, 1), (width, width, 3), (4 * width, width, 1)], 1
        ):
            shapes |= convolution(f"{at}.conv{number}", out, into, kernel)
            shapes |= norm(f"{at}.bn{number}", out)
        if first != 4 * width:
            shapes |= downsample(at, 4 * width, first)
    return shapes


def basics(name: str, inputs: int, width: int, blocks: int) -> Shapes:
    shapes: Shapes = {}
    for block in range(blocks):
        at = f"{name}.{block}"
        first = inputs if block == 0 else width
        shapes |= convolution(f"{at}.conv1", width, first, 3) | norm(f"{at}.bn1", width)
        shapes |= convolution(f"{at}.conv2", width, width, 3) | norm(f"{at}.bn2", width)
        if first != width:
            shapes |= downsample(at, width, first)
    return shapes


def spin() -> Shapes:
    shapes = convolution("conv1", 64, 3, 7) | norm("bn1", 64)
    shapes |= bottlenecks("layer1", 64, 64, 3) | bottlenecks("layer2", 256, 128, 4)
    shapes |= bottlenecks("layer3", 512, 256, 6) | bottlenecks("layer4", 1024, 512, 3)
    shapes |= linear("fc1", 1024, 2048 + 144 + 13) | linear("fc2", 1024, 1024)
    shapes |= linear("decpose", 144, 1024) | linear("decshape", 10, 1024)
    shapes |= linear("deccam", 3, 1024)
    return shapes | {"init_pose": (1, 144), "init_shape": (1, 10), "init_cam": (1, 3)}


def smpl_layer() -> Shapes:
    return {
        "smpl.faces_tensor": (FACES, 3),
        "smpl.v_template": (VERTICES, 3),
        "smpl.shapedirs": (VERTICES, 3, 10),
        "smpl.posedirs": (207, 3 * VERTICES),
        "smpl.J_regressor": (24, VERTICES),
        "smpl.J_regressor_h36m": (17, VERTICES),
        "smpl.children_map": (29,),
        "smpl.parents": (29,),
        "smpl.lbs_weights": (VERTICES, 24),
    }


def hybrik_heads(features: int, camera: int) -> Shapes:
    shapes = linear("decshape", 10, features) | linear("decphi", 46, features)
    shapes |= linear("deccam", camera, features) | linear("decsigma", 29, features)
    return shapes | smpl_layer() | {"init_shape": (10,), "init_cam": (camera,)}


def hybrik_res34() -> Shapes:
    shapes = convolution("preact.conv1", 64, 3, 7) | norm("preact.bn1", 64)
    inputs = 64
    for stage, (width, blocks) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], 1):
        shapes |= basics(f"preact.layer{stage}", inputs, width, blocks)
        inputs = width
    for layer, inputs in ((0, 512), (3, 256), (6, 256)):
        # of a transposed convolution: inputs first
        shapes |= convolution(f"deconv_layers.{layer}", inputs, 256, 4)
        shapes |= norm(f"deconv_layers.{layer + 1}", 256)
    shapes |= convolution("final_layer", 29 * 64, 256, 1, bias=True)
    shapes |= linear("fc1", 1024, 512) | linear("fc2", 1024, 1024)
    return shapes | hybrik_heads(1024, 3)


def hrnet_stage(name: str, modules: int, widths: list[int]) -> Shapes:
    shapes: Shapes = {}
    for module in range(modules):
        at = f"{name}.{module}"
        for branch, width in enumerate(widths):
            shapes |= basics(f"{at}.branches.{branch}", width, width, 4)
        for to, out in enumerate(widths):
            for source, into in enumerate(widths):
                fuse = f"{at}.fuse_layers.{to}.{source}"
                if source > to:
                    shapes |= convolution(f"{fuse}.0", out, into, 1) | norm(f"{fuse}.1", out)
                for step in range(to - source):
                    end = out if step == to - source - 1 else into
                    shapes |= convolution(f"{fuse}.{step}.0", end, into, 3)
                    shapes |= norm(f"{fuse}.{step}.1", end)
    return shapes


def hybrik_w48() -> Shapes:
    widths = [48, 96, 192, 384]
    shapes = convolution("conv1", 64, 3, 3) | norm("bn1", 64)
    shapes |= convolution("conv2", 64, 64, 3) | norm("bn2", 64)
    shapes |= bottlenecks("layer1", 64, 64, 4)
    shapes |= convolution("transition1.0.0", 48, 256, 3) | norm("transition1.0.1", 48)
    shapes |= convolution("transition1.1.0.0", 96, 256, 3) | norm("transition1.1.0.1", 96)
    shapes |= convolution("transition2.2.0.0", 192, 96, 3) | norm("transition2.2.0.1", 192)
    shapes |= convolution("transition3.3.0.0", 384, 192, 3) | norm("transition3.3.0.1", 384)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        shapes |= hrnet_stage(f"stage{stage}", modules, widths[:stage])
    for scale, width in enumerate(widths):
        shapes |= bottlenecks(f"incre_modules.{scale}", width, 32 * 2**scale, 1)
        if scale < 3:
            into, out = 128 * 2**scale, 256 * 2**scale
            shapes |= convolution(f"downsamp_modules.{scale}.0", out, into, 3, bias=True)
            shapes |= norm(f"downsamp_modules.{scale}.1", out)
    shapes |= convolution("final_feat_layer.0", 2048, 1024, 1, bias=True)
    shapes |= norm("final_feat_layer.1", 2048)
    shapes |= convolution("final_layer", 29 * 64, 48, 1, bias=True)
    return {f"preact.{name}": shape for name, shape in shapes.items()} | hybrik_heads(2048, 1)


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Values that keep activations of any depth finite; what a published file could hold."""
    stream = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(("num_batches_tracked", "faces_tensor", "parents", "children_map")):
            state[name] = torch.zeros(shape, dtype=torch.long)
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(shape, generator=stream)
        else:
            scale = float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.1
            state[name] = scale * torch.randn(shape, generator=stream)
    return state


def hybrik_state(shapes: Shapes, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Random weights beside the arrays of one SMPL file, as HybrIK's checkpoints hold them.

    The camera's weights are small: a person would be anywhere, also around the camera.
    """
    children = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 27, 28, 15, 16, 17, 24, 18, 19, 20, 21, 22, 23]
    layer = {
        "faces_tensor": arrays["f"].astype(np.int64),
        "v_template": arrays["v_template"],
        "shapedirs": arrays["shapedirs"],
        "posedirs": arrays["posedirs"].reshape(-1, 207).T,
        "J_regressor": arrays["J_regressor"],
        "J_regressor_h36m": np.zeros((17, VERTICES)),
        "children_map": np.array([*children, 25, 26, *[-1] * 5]),
        "parents": np.array([*PARENTS, 15, 22, 23, 10, 11]),
        "lbs_weights": arrays["weights"],
    }
    state = random_state(shapes)
    for name, array in layer.items():
        value = torch.from_numpy(np.ascontiguousarray(array))
        state[f"smpl.{name}"] = value.float() if value.is_floating_point() else value
    for name in ("deccam.weight", "deccam.bias", "init_cam"):
        state[name] *= 0.1
    state["init_cam"][0] += 0.9
    return state


def smpl_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A body of SMPL's size: 24 vertices are joints of an adult in T-pose, five are its leaves."""
    stream = np.random.default_rng(seed)
    left = {
        0: (0, 0.95, 0), 1: (0.07, 0.86, -0.01), 3: (0.003, 1.06, -0.03), 4: (0.10, 0.48, 0.0),
        6: (0.0, 1.19, 0.0), 7: (0.09, 0.08, -0.04), 9: (0.0, 1.25, 0.02), 10: (0.12, 0.02, 0.08),
        12: (0.0, 1.46, -0.02), 13: (0.08, 1.37, -0.01), 15: (0.003, 1.55, 0.03),
        16: (0.19, 1.38, -0.02), 18: (0.45, 1.37, -0.04), 20: (0.70, 1.38, -0.04),
        22: (0.78, 1.37, -0.05),
    }  # fmt: skip
    right_of = {1: 2, 4: 5, 7: 8, 10: 11, 13: 14, 16: 17, 18: 19, 20: 21, 22: 23}
    joints = np.zeros((24, 3))
    for joint, place in left.items():
        joints[joint] = place
        if joint in right_of:
            joints[right_of[joint]] = np.multiply(place, (-1, 1, 1))
    leaves = [(0, 1.75, 0.02), (0.87, 1.37, -0.05), (-0.87, 1.37, -0.05)]
    leaves += [(0.13, 0.01, 0.16), (-0.13, 0.01, 0.16)]
    template = stream.normal(size=(VERTICES, 3)) * 0.2 + joints[stream.integers(0, 24, VERTICES)]
    template[:24] = joints
    template[LEAF_VERTICES] = leaves
    template -= [0, 1.2, 0]  # SMPL's own origin lies near the chest
    weights = stream.random((VERTICES, 24)) ** 8
    return {
        "v_template": template.astype(np.float32),
        "shapedirs": (0.005 * stream.normal(size=(VERTICES, 3, 10))).astype(np.float32),
        "posedirs": (0.001 * stream.normal(size=(VERTICES, 3, 207))).astype(np.float32),
        "J_regressor": np.eye(24, VERTICES, dtype=np.float32),
        "weights": (weights / weights.sum(1, keepdims=True)).astype(np.float32),
        "kintree_table": np.array([PARENTS, range(24)]),
        "f": stream.integers(0, VERTICES, (FACES, 3)),
    }


def write_smpl(folder: Path) -> dict[str, np.ndarray]:
    arrays = smpl_arrays()
    np.savez(folder / "SMPL_NEUTRAL.npz", **arrays)
    return arrays
