"""A parametric body on the common skeleton: rotations + shape -> joints, vertices, bone transforms.

Rest pose is the T-pose: y up, facing +z, the person's left is +x, feet near y = 0 at zero
translation. With identity rotations the body stands in it, and every joint frame is aligned with
the world (SMPL's convention), so SMPL poses apply to every body unchanged.

Knows nothing of files: `posegen_ray.body.anny` and `posegen_ray.body.smpl` build one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posegen_ray.body.skeleton import NUM_JOINTS, PARENTS


@dataclass(frozen=True)
class PosedBody:
    """What a pose makes of a body. World coordinates, metres; differentiable in pose and shape."""

    joints: Tensor  # [B, 24, 3]
    bones: Tensor  # [B, 24, 3, 4] rest -> posed transform of each bone (what skinning blends)
    vertices: Tensor | None  # [B, V, 3]; None unless asked for


class BodyModel(nn.Module):
    """Linear blend skinning over a shape space.

    Args:
        name: "anny" or "smpl"; stored with subjects, so that they meet the same body again.
        template: [V, 3] rest vertices of the mean shape.
        shape_directions: [V, 3, S] change of the rest vertices per unit of shape.
        joint_template: [24, 3] rest joints of the mean shape.
        joint_directions: [24, 3, S] change of the rest joints per unit of shape.
        skinning_weights: [V, 24], rows sum to 1.
        faces: [F, 3] triangles, counter-clockwise from outside.
        uv: [T, 2] texture coordinates in [0, 1] (v up) and uv_faces: [F, 3] into them; optional.
        pose_directions: [V, 3, 207] SMPL's pose blend shapes (change `vertices` only); optional.
    """

    def __init__(
        self,
        name: str,
        template: Tensor,
        shape_directions: Tensor,
        joint_template: Tensor,
        joint_directions: Tensor,
        skinning_weights: Tensor,
        faces: Tensor,
        uv: Tensor | None = None,
        uv_faces: Tensor | None = None,
        pose_directions: Tensor | None = None,
    ) -> None:
        super().__init__()
        assert joint_template.shape == (NUM_JOINTS, 3)
        assert skinning_weights.shape == (template.shape[0], NUM_JOINTS)
        self.name = name
        self.template: Tensor
        self.shape_directions: Tensor
        self.joint_template: Tensor
        self.joint_directions: Tensor
        self.skinning_weights: Tensor
        self.faces: Tensor
        self.uv: Tensor | None
        self.uv_faces: Tensor | None
        self.pose_directions: Tensor | None
        self.register_buffer("template", template.float())
        self.register_buffer("shape_directions", shape_directions.float())
        self.register_buffer("joint_template", joint_template.float())
        self.register_buffer("joint_directions", joint_directions.float())
        self.register_buffer("skinning_weights", skinning_weights.float())
        self.register_buffer("faces", faces.long())
        self.register_buffer("uv", None if uv is None else uv.float())
        self.register_buffer("uv_faces", None if uv_faces is None else uv_faces.long())
        self.register_buffer("pose_directions", pose_directions)

    @property
    def num_shape(self) -> int:
        return self.shape_directions.shape[2]

    def rest_joints(
        self,
        shape: Tensor,  # [B, S]
    ) -> Tensor:  # [B, 24, 3]
        """T-pose joints of a shape."""
        return self.joint_template + torch.einsum("jcs,bs->bjc", self.joint_directions, shape)

    def rest_vertices(
        self,
        shape: Tensor,  # [B, S]
    ) -> Tensor:  # [B, V, 3]
        """T-pose vertices of a shape."""
        return self.template + torch.einsum("vcs,bs->bvc", self.shape_directions, shape)

    def forward(
        self,
        rotations: Tensor,  # [B, 24, 3, 3] local, parent <- joint; the root's is in the world
        shape: Tensor,  # [B, S] or [1, S]
        translation: Tensor | None = None,  # [B, 3] metres, added to the posed body
        vertices: bool = False,
    ) -> PosedBody:
        """Poses the body. Joints and bones cost microseconds; vertices only when asked for."""
        batch = rotations.shape[0]
        rest = self.rest_joints(shape).expand(batch, -1, -1)
        joints, bones = forward_kinematics(rotations, rest)
        if translation is not None:
            joints = joints + translation[:, None]
            bones = torch.cat([bones[..., :3], bones[..., 3:] + translation[:, None, :, None]], -1)
        posed = None
        if vertices:
            points = self.rest_vertices(shape).expand(batch, -1, -1)
            if self.pose_directions is not None:
                bend = (rotations[:, 1:] - torch.eye(3, device=rotations.device)).flatten(1)
                points = points + torch.einsum("vcp,bp->bvc", self.pose_directions, bend)
            posed = skin(points, self.skinning_weights, bones)
        return PosedBody(joints, bones, posed)


def forward_kinematics(
    rotations: Tensor,  # [B, 24, 3, 3]
    rest_joints: Tensor,  # [B, 24, 3]
) -> tuple[Tensor, Tensor]:  # joints [B, 24, 3], bones [B, 24, 3, 4]
    """Walks the tree; the pelvis stays at its rest place. Differentiable in both arguments."""
    world_rotation = [rotations[:, 0]]
    position = [rest_joints[:, 0]]
    for joint in range(1, NUM_JOINTS):
        parent = PARENTS[joint]
        offset = (rest_joints[:, joint] - rest_joints[:, parent])[..., None]
        position.append(position[parent] + (world_rotation[parent] @ offset)[..., 0])
        world_rotation.append(world_rotation[parent] @ rotations[:, joint])
    joints = torch.stack(position, 1)
    world = torch.stack(world_rotation, 1)
    moved = joints[..., None] - world @ rest_joints[..., None]
    return joints, torch.cat([world, moved], -1)


def skin(
    points: Tensor,  # [B, V, 3] rest
    weights: Tensor,  # [V, 24]
    bones: Tensor,  # [B, 24, 3, 4]
) -> Tensor:  # [B, V, 3] posed
    """Linear blend skinning."""
    blended = (weights @ bones.flatten(2)).unflatten(-1, (3, 4))
    posed: Tensor = (blended[..., :3] @ points[..., None])[..., 0] + blended[..., 3]
    return posed
