"""The square crop that an estimator was trained for, as a camera and as a resampled picture.

The crop is a camera (`posegen_ray.body.camera.crop`): rendering with it gives the crop directly.
Photographs by a known camera are resampled with `crop_image`, which has the same geometry; pictures
of which only a person's box is known are cut by `posegen_ray.estimators.pictures`.
Knows nothing of networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posegen_ray.body.camera import Camera, crop, project, to_camera
from posegen_ray.body.skeleton import JOINT

# a hip -> shoulder vector shorter than this part of the crop's side has no usable direction
_SHORT = 0.005


@dataclass(frozen=True)
class PictureCrop:
    """How an estimator's published evaluation cuts a person out of a picture, by the person's box.

    An upright square (width / height = 1) about the middle of the box. Default: as SPIN does.
    """

    about_joints: float = 1.2  # its side / the longer side of the box around the 2D joints
    about_person: float = 0.9  # the same for the wider boxes that Human3.6M states itself
    clipped: bool = False  # the box is first cut off at the picture's edges
    # bilinear samples at exact places, as cv2.warpAffine takes them; else the corners are cut to
    # whole pixels (towards zero), and pixels are averaged where the square shrinks
    sampled: bool = False


@dataclass(frozen=True)
class CropSpec:
    """Which part of a picture an estimator wants to see.

    `aligned`: rotated so that mid-hip -> mid-shoulder points up (as BlazePose was trained);
    `upright`: not rotated. Both are squares centred at the mid-hip, their side is `scale` times
    the distance to the farthest joint. `box`: not rotated, centred at the joints' bounding box,
    `scale` times its longer side (as SPIN and HybrIK were trained). `margin` is added around the
    joints for what lies beyond them (the top of the head, fingers, toes).
    `picture` says the same for real pictures, of which only the person's box is known.
    """

    size: int  # pixels
    kind: str = "aligned"  # aligned | upright | box
    scale: float = 2.5
    margin: float = 0.1  # metres
    picture: PictureCrop = PictureCrop()


# known without loading the networks, whose packages take memory
SPIN_CROP = CropSpec(size=224, kind="box", scale=1.2)
COMPACT_CROP = SPIN_CROP
HYBRIK_CROP = CropSpec(
    size=256,
    kind="box",
    scale=1.25,
    picture=PictureCrop(about_joints=1.25, about_person=1.0, clipped=True, sampled=True),
)


def estimator_crop(
    camera: Camera,
    joints: Tensor,  # [B, 24, 3] metres, world
    spec: CropSpec,
) -> Camera:
    """The camera whose picture is the crop that the estimator wants.

    Differentiable in the camera and the joints. Where hip -> shoulder is nearly along the view ray
    (shorter than 0.5 % of the side in the picture) the angle's gradient is damped to zero, so it is
    finite everywhere.
    """
    pixels = project(camera, joints)
    depth = to_camera(camera, joints)[..., 2].clamp_min(0.1)
    beyond = spec.margin * camera.focal[:, None] / depth
    if spec.kind == "box":
        centre, side = _box(pixels, beyond[..., None])
        return crop(camera, centre, spec.scale * side, torch.zeros_like(side), spec.size)
    hips = pixels[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1)
    shoulders = pixels[:, [JOINT["left_shoulder"], JOINT["right_shoulder"]]].mean(1)
    reach = ((pixels - hips[:, None]).square().sum(-1) + 1e-6).sqrt() + beyond
    side = spec.scale * reach.amax(1)
    if spec.kind == "aligned":
        angle = _angle_to_up(shoulders - hips, _SHORT * side.detach())
    else:
        angle = torch.zeros_like(side)
    return crop(camera, hips, side, angle, spec.size)


def _box(
    pixels: Tensor,  # [B, N, 2]
    beyond: Tensor,  # [B, N, 1] pixels around each
) -> tuple[Tensor, Tensor]:  # its middle [B, 2] and longer side [B]
    low, high = (pixels - beyond).amin(1), (pixels + beyond).amax(1)
    return (low + high) / 2, (high - low).amax(1)


def _angle_to_up(
    direction: Tensor,  # [B, 2] picture axes (y down)
    short: Tensor,  # [B] lengths below which the gradient is damped
) -> Tensor:  # [B] radians
    """Clockwise turn that makes `direction` point up; value exact, gradient damped near zero."""
    x, y = direction.unbind(-1)
    x0, y0 = x.detach(), y.detach()
    exact = torch.atan2(-x0, -y0)
    # its first-order term, whose value is zero here; the damping is soon over: 2 % at 2.7 `short`
    square = x0.square() + y0.square()
    return exact + (x * y0 - y * x0) * square / (square.square() + short**4)


def crop_image(
    images: Tensor,  # [B, 3, H, W] pictures taken by `camera`
    camera: Camera,
    view: Camera,  # a crop of `camera` (same optical centre)
) -> Tensor:  # [B, 3, S, S]
    """What `view` sees of pictures taken by `camera`; black outside of them.

    Bilinear, with averaging where the crop is smaller than the part it shows. Differentiable in
    the images and both cameras.
    """
    assert images.shape[-2:] == (camera.height, camera.width)
    with torch.no_grad():
        shrink = float((camera.focal / view.focal).max())
    fine = max(1, min(math.ceil(shrink), 4))
    rows = (torch.arange(view.height * fine, device=images.device) + 0.5) / fine
    columns = (torch.arange(view.width * fine, device=images.device) + 0.5) / fine
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixel = torch.stack([u, v], -1).to(images.dtype).flatten(0, 1)  # [N, 2]
    ray = (pixel - view.principal[:, None]) / view.focal[:, None, None]
    ray = torch.cat([ray, torch.ones_like(ray[..., :1])], -1)
    ray = ray @ view.rotation @ camera.rotation.transpose(-1, -2)
    place = ray[..., :2] / ray[..., 2:] * camera.focal[:, None, None] + camera.principal[:, None]
    extent = place.new_tensor([camera.width, camera.height])
    grid = (place / extent * 2 - 1).unflatten(1, (view.height * fine, view.width * fine))
    sampled = F.grid_sample(images, grid, mode="bilinear", align_corners=False)
    return F.avg_pool2d(sampled, fine) if fine > 1 else sampled
