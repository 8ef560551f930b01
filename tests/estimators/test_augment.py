"""Labels for fine-tuning, and copies of images that are mirrored, turned and scaled with them."""

from dataclasses import replace

import torch
from bodies import capsule_body
from test_finetune import make_samples
from torch import Tensor

from posegen_ray.body.camera import orbit, project, to_camera
from posegen_ray.body.model import forward_kinematics
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT, LIMB_JOINTS
from posegen_ray.estimators.augment import Labels, augment, labels_of, mirror
from posegen_ray.estimators.base import centred
from posegen_ray.estimators.crop import CropSpec, estimator_crop
from posegen_ray.records import Samples


def test_mirrored_labels_fit_the_mirrored_image():
    samples = make_samples(2)
    truth = labels_of(samples)
    images, labels = mirror(samples.images.float(), truth)
    again = mirror(images, labels)
    assert torch.equal(again[0], samples.images.float())
    assert torch.equal(again[1].joints, truth.joints)
    assert torch.equal(labels.joints[:, 0, 0], -truth.joints[:, 1, 0])


def scene_samples(count: int, size: int = 16) -> tuple[Samples, Tensor]:
    """Samples of posed capsule figures in a turned crop, and their shapes' rest joints."""
    stream = torch.Generator().manual_seed(0)
    body = capsule_body()
    rotations = from_axis_angle(0.5 * torch.randn(count, 24, 3, generator=stream))
    shape = torch.zeros(count, 2)
    posed = body(rotations, shape).joints
    hips = posed[:, [JOINT["left_hip"], JOINT["right_hip"]]].mean(1)
    ones = torch.ones(count)
    frame = orbit(
        hips, torch.arange(count) * 1.0, 0.3 * ones, 0.2 * ones, 4 * ones, 300 * ones,
        torch.full((count, 2), 128.0), 256, 256,
    )  # fmt: skip
    crop = estimator_crop(frame, posed, CropSpec(size=size))
    limbs = posed[:, list(LIMB_JOINTS)]
    samples = replace(
        make_samples(count, size),
        joints=to_camera(crop, limbs) - to_camera(crop, hips[:, None]),
        joints_2d=project(crop, limbs),
        rotations=rotations,
        shape=shape,
        camera=crop,
    )
    return samples, body.rest_joints(shape)


def limbs_of(rotations: Tensor, rest: Tensor) -> Tensor:
    return centred(forward_kinematics(rotations, rest)[0][:, list(LIMB_JOINTS)])


def test_rotations_and_joints_of_a_label_are_of_one_frame():
    """Posing a body by the labels' rotations gives the labels' joints: also in the mirror."""
    samples, rest = scene_samples(6)
    labels = labels_of(samples)
    assert torch.allclose(limbs_of(labels.rotations, rest), labels.joints, atol=1e-5)
    images = samples.images.float() / 255
    for _, changed in (
        mirror(images, labels),
        augment(images, labels, torch.Generator().manual_seed(0)),
    ):
        assert not torch.allclose(changed.joints, labels.joints, atol=0.05)
        assert torch.allclose(limbs_of(changed.rotations, rest), changed.joints, atol=1e-5)


def test_places_of_a_label_are_where_its_joints_are_seen():
    samples, _ = scene_samples(6, size=64)
    labels = labels_of(samples)
    assert torch.allclose((labels.joints_2d + 0.5) * 64, samples.joints_2d, atol=1e-4)
    _, mirrored_labels = mirror(samples.images.float(), labels)
    flipped = samples.joints_2d[:, 0] * torch.tensor([-1, 1]) + torch.tensor([64, 0])
    assert torch.allclose((mirrored_labels.joints_2d[:, 1] + 0.5) * 64, flipped, atol=1e-4)


def test_augmented_labels_stay_on_the_image():
    """A bright dot drawn where a joint projects is still there after turning and mirroring."""
    count, size = 24, 64
    generator = torch.Generator().manual_seed(0)
    joints = torch.zeros(count, 12, 3)
    joints[:, 0, :2] = torch.randn(count, 2, generator=generator) * 0.2
    joints[:, 1, :2] = joints[:, 0, :2]  # the same place on both sides: mirroring keeps the name
    ys, xs = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    place = size / 2 + joints[:, 0, :2] * 30
    spot = (xs - place[:, :1, None]) ** 2 + (ys - place[:, 1:, None]) ** 2
    images = torch.exp(-spot / 8)[:, None].expand(-1, 3, -1, -1)
    rotations = torch.eye(3).expand(count, 24, 3, 3)
    places = (place / size - 0.5)[:, None].expand(-1, 12, -1)
    truth = Labels(joints, places, rotations, torch.zeros(count, 1))
    moved, changed = augment(images, truth, torch.Generator().manual_seed(1))
    labels = changed.joints
    weight = moved.mean(1).square()
    weight = weight / weight.sum((1, 2), keepdim=True)
    found = torch.stack([(weight * xs).sum((1, 2)), (weight * ys).sum((1, 2))], -1) - size / 2
    # exactly where the picture's label says, and in the direction of the joint
    assert (found - changed.joints_2d[:, 0] * size).norm(dim=1).max() < 0.5
    expected = labels[:, 0, :2] * 30
    turned = found / found.norm(dim=1, keepdim=True) - expected / expected.norm(dim=1, keepdim=True)
    far = expected.norm(dim=1) > 2
    assert turned[far].abs().max() < 0.05
    scale = found[far].norm(dim=1) / expected[far].norm(dim=1)
    assert (scale > 0.85).all()
    assert (scale < 1.16).all()
