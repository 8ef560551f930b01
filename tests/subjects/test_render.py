"""The two renderers agree with each other, with finite differences, and with common sense.

All of it is true of a GPU, too (`pytest -m gpu`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from bodies import capsule_body, painted_subject, shining

from posegen_ray.body.camera import Camera, orbit
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.body.skeleton import JOINT
from posegen_ray.config import RendererConfig
from posegen_ray.errors import RenderError
from posegen_ray.records import RenderRequest, lit
from posegen_ray.subjects.deform import pose_normals, pose_vertices
from posegen_ray.subjects.light import brightness
from posegen_ray.subjects.render import Renderer, make_renderer
from posegen_ray.subjects.render_fused import FusedModel, ray_slopes, to_camera_bones
from posegen_ray.subjects.render_reference import ReferenceModel
from posegen_ray.subjects.store import VoxelSubject

CAMERA = ("rotation", "translation", "focal", "principal")


def _rotations(batch: int, spread: float, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return from_axis_angle(spread * torch.randn(batch, 24, 3, generator=stream))


def _in_contact(batch: int) -> torch.Tensor:  # [batch, 24, 3, 3]
    """Forearms across the chest and into it, one thigh over the other."""
    turns = torch.zeros(batch, 24, 3)
    turns[:, JOINT["left_shoulder"]] = torch.tensor([0.0, -0.5, -1.1])
    turns[:, JOINT["right_shoulder"]] = torch.tensor([0.0, 0.4, 1.2])
    turns[:, JOINT["left_elbow"]] = torch.tensor([0.0, -2.1, 0.0])
    turns[:, JOINT["right_elbow"]] = torch.tensor([0.0, 2.2, 0.0])
    turns[:, JOINT["left_hip"]] = torch.tensor([-0.5, 0.0, -0.35])
    return from_axis_angle(turns)


def _camera(batch: int, size: int) -> Camera:
    ones = torch.ones(batch)
    return orbit(
        torch.tensor([[0.0, 0.9, 0.0]]).expand(batch, 3),
        0.3 + 1.7 * torch.arange(batch),
        0.2 * ones,
        0.1 * ones,
        3.0 * ones,
        1.1 * size * ones,
        torch.full((batch, 2), size / 2),
        size,
        size,
    )


def _request(
    batch: int = 3,
    size: int = 48,
    spread: float = 0.3,
    name: str = "capsules",
    contact: bool = False,
) -> RenderRequest:
    rotations = _in_contact(batch) if contact else _rotations(batch, spread)
    bones = capsule_body()(rotations, torch.zeros(1, 2)).bones
    return RenderRequest((name,) * batch, bones, _camera(batch, size))


RendererOf = Callable[..., Renderer]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def renderer_of(device: torch.device) -> RendererOf:
    """A renderer of one subject on the device; requests may lie elsewhere."""

    def make(subject: VoxelSubject, **settings: object) -> Renderer:
        config = RendererConfig(**settings)  # type: ignore[arg-type]
        return make_renderer(config, {subject.name: subject}, device)

    return make


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


def _turning(camera: Camera, grad: np.ndarray) -> np.ndarray:
    """What a gradient of rotation matrices says about turning the camera."""
    moment = np.swapaxes(camera.rotation.numpy(), -1, -2) @ grad
    return moment - np.swapaxes(moment, -1, -2)


@pytest.mark.parametrize("contact", [False, True])
@pytest.mark.parametrize(("early_stop", "tolerance"), [(0.0, 2e-4), (1e-3, 2e-3)])
def test_fused_and_reference_pictures_agree(
    capsule_subject: VoxelSubject,
    early_stop: float,
    tolerance: float,
    contact: bool,
    renderer_of: RendererOf,
) -> None:
    request = _request(batch=2, contact=contact)
    fused = renderer_of(capsule_subject, early_stop=early_stop).render_arrays(request)
    reference = renderer_of(capsule_subject, kind="reference").render_arrays(request)
    assert reference[..., 3].max() > 0.99
    difference = np.abs(fused - reference)
    assert np.quantile(difference[reference[..., 3] > 0], 0.99) < tolerance
    # the reference misses a ray in thousands that runs exactly along an edge
    missed = difference.max(-1) > 5 * tolerance
    assert missed.mean() < 5e-4
    if early_stop == 0:
        assert np.linalg.norm(difference[~missed]) < 1e-3 * np.linalg.norm(reference[~missed])


@pytest.mark.gpu
def test_a_gpu_gives_the_cpus_pictures_and_gradients(capsule_subject: VoxelSubject) -> None:
    request = _request(batch=4, size=96, spread=0.5)
    weight = np.random.default_rng(0).normal(size=(4, 96, 96, 4)).astype(np.float32)
    cpu, gpu = (
        make_renderer(RendererConfig(), {"capsules": capsule_subject}, device)
        for device in ("cpu", "cuda")
    )
    difference = np.abs(cpu.render_arrays(request) - gpu.render_arrays(request))
    assert (difference.max(-1) > 1e-3).mean() < 5e-4  # rays exactly along an edge
    pulled = gpu.vjp_arrays(request, weight), cpu.vjp_arrays(request, weight)
    for ours, theirs in zip(*pulled, strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs)


@pytest.mark.parametrize("shines", [False, True])
@pytest.mark.parametrize("contact", [False, True])
def test_fused_and_reference_gradients_agree(
    capsule_subject: VoxelSubject, contact: bool, shines: bool, renderer_of: RendererOf
) -> None:
    """The reference in double precision: where bodies touch, its own rounding in single precision
    is ten times what the fused renderer is wrong by."""
    request = _request(batch=2, contact=contact)
    subject = shining(capsule_subject) if shines else capsule_subject
    fused = renderer_of(subject, early_stop=0.0)
    parts = _doubled((subject.lattice, subject.field, subject.light))
    reference = ReferenceModel(*parts, RendererConfig(kind="reference"))
    leaves = _doubled([request.bones, *(getattr(request.camera, n) for n in CAMERA), lit(request)])
    leaves = [leaf.requires_grad_() for leaf in leaves]
    camera = replace(request.camera, **dict(zip(CAMERA, leaves[1:-1], strict=True)))
    picture = reference.draw(leaves[0], camera, leaves[-1])
    apart: dict[str, float] = {}
    whole: dict[str, float] = {}
    # a gradient of one random picture may all but cancel: what is left is the processor's rounding
    for seed in range(4):
        weight = np.random.default_rng(seed).normal(size=(2, 48, 48, 4)).astype(np.float32)
        pulled = fused.vjp_arrays(request, weight)
        loss = (picture * torch.from_numpy(weight).double()).sum()
        expected = torch.autograd.grad(loss, leaves, retain_graph=True)
        for name, ours, tensor in zip(pulled._fields, pulled, expected, strict=True):
            theirs = tensor.numpy()
            if name == "rotation":  # only turns have a meaning, not all changes of nine numbers
                ours, theirs = _turning(request.camera, ours), _turning(request.camera, theirs)
            apart[name] = apart.get(name, 0.0) + float(np.square(ours - theirs).sum())
            whole[name] = whole.get(name, 0.0) + float(np.square(theirs).sum())
    for name in apart:
        assert np.sqrt(apart[name] / whole[name]) <= 3e-4, name


def _doubled(value: Any) -> Any:
    """A tensor, or all that a record or a list holds, in double precision."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _doubled(getattr(value, f.name)) for f in fields(value)})
    return type(value)(map(_doubled, value)) if isinstance(value, list | tuple) else value


def test_the_gradient_of_the_field_agrees_with_the_reference(
    capsule_subject: VoxelSubject, device: torch.device
) -> None:
    subject, request = capsule_subject, _request(batch=2, contact=True)
    parts = subject.lattice, subject.field, subject.light
    model = FusedModel(*parts, RendererConfig(early_stop=0), device)
    bones, camera = request.bones.to(device), request.camera.to(device)
    points = pose_vertices(model.lattice, to_camera_bones(camera, bones))
    normals = pose_normals(model.lattice, bones)
    view = model.find_rays(points, camera)
    slopes, shade = ray_slopes(camera, view), brightness(model.light, normals)
    rgba, samples = model.march_noting(view, slopes, shade)
    weight = torch.randn(2 * 48 * 48, 4, generator=torch.Generator().manual_seed(0))
    ours = torch.zeros_like(model.values)
    pixels = weight.to(device)[view.row]
    model.pull_back_to_field(view, slopes, shade, rgba, samples, pixels, ours)

    lattice, field, light = _doubled((subject.lattice, subject.field, subject.light))
    values = field.values.requires_grad_()
    reference = ReferenceModel(lattice, field, light, RendererConfig(kind="reference"))
    picture = reference.draw(*_doubled((request.bones, request.camera)))
    (expected,) = torch.autograd.grad((picture.view(-1, 4) * weight.double()).sum(), values)
    assert (expected != 0).any(1).float().mean() > 0.2
    assert (ours.cpu() - expected).norm() < 1e-3 * expected.norm()


def test_samples_that_found_no_room_are_not_lost(
    capsule_subject: VoxelSubject, device: torch.device
) -> None:
    subject, request = capsule_subject, _request(batch=2)
    parts = subject.lattice, subject.field, subject.light
    camera = request.camera.to(device)
    found = []
    for room in (0.1, 12.0):
        model = FusedModel(*parts, RendererConfig(), device)
        model._samples_a_ray = room
        bones = request.bones.clone().to(device).requires_grad_()
        picture = model.draw(bones, camera)
        assert torch.equal(
            picture, FusedModel(*parts, RendererConfig(), device).draw(bones, camera)
        )
        picture.square().sum().backward()
        found.append(bones.grad)
    assert found[0] is not None
    assert found[0].any()
    within = 0.0 if device.type == "cpu" else 1e-4  # a GPU adds in any order
    assert found[1] is not None
    assert (found[0] - found[1]).norm() <= within * found[1].norm()


@pytest.mark.parametrize("contact", [False, True])
def test_gradients_agree_with_finite_differences(
    capsule_subject: VoxelSubject, contact: bool, renderer_of: RendererOf
) -> None:
    """Over joint angles, light and camera parameters, for a smooth weighting of the picture."""
    size = 96
    renderer = renderer_of(capsule_subject, early_stop=0.0)
    base = _camera(1, size)
    rotations = _in_contact(1) if contact else _rotations(1, 0.3)
    rows = torch.arange(size) / size
    waves = torch.sin(7 * rows)[:, None] * torch.cos(5 * rows)[None]
    weight = torch.stack([waves, waves.T, -waves, 0.5 * waves + rows], -1)[None]
    body = capsule_body()

    def loss(parameters: torch.Tensor) -> torch.Tensor:
        turn = from_axis_angle(parameters[:72].view(1, 24, 3))
        bones = body(rotations @ turn, torch.zeros(1, 2)).bones
        camera = Camera(
            from_axis_angle(parameters[None, 72:75]) @ base.rotation,
            base.translation + parameters[None, 75:78],
            base.focal + 100 * parameters[78:79],
            base.principal + 100 * parameters[None, 79:81],
            size,
            size,
        )
        light = torch.tensor([[0.7, 1.2, 0.9]]) + parameters[None, 81:84]
        return (renderer(RenderRequest(("capsules",), bones, camera, light)).rgba * weight).sum()

    start = torch.zeros(84, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(start), start)
    moving = ["pelvis", "spine2", "left_hip", "left_knee", "right_shoulder", "right_elbow"]
    indices = [3 * JOINT[name] + axis for name in moving for axis in range(3)] + list(range(72, 84))
    differences = []
    with torch.no_grad():
        for index in indices:
            step = torch.zeros(84)
            step[index] = 5e-4
            differences.append(float(loss(step) - loss(-step)) / 1e-3)
    ours, numeric = gradient[indices].numpy(), np.array(differences)
    # bones, then the camera's turn, place, focal length, principal point, then the light
    parts = (slice(0, 18), slice(18, 21), slice(21, 24), slice(24, 25), slice(25, 27))
    for part in (*parts, slice(27, 30)):
        assert _cosine(ours[part], numeric[part]) > 0.99
        assert np.linalg.norm(ours[part]) == pytest.approx(np.linalg.norm(numeric[part]), rel=0.1)


def test_pictures_do_not_jump_where_the_body_overlaps_itself(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    """An arm sweeps into and over the trunk: each tiny step changes each pixel a little."""
    renderer = renderer_of(capsule_subject, early_stop=0.0)
    steps = torch.linspace(-1.4, -0.7, 15).repeat_interleave(2)
    steps[1::2] += 1e-4
    rotations = torch.eye(3).repeat(len(steps), 24, 1, 1)
    down, bend = torch.tensor([0.0, 0.0, -1.1]), torch.tensor([0.0, -1.8, 0.0])
    rotations[:, JOINT["left_shoulder"]] = from_axis_angle(
        torch.tensor([0.0, 1.0, 0.0]) * steps[:, None]
    ) @ from_axis_angle(down)
    rotations[:, JOINT["left_elbow"]] = from_axis_angle(bend)
    bones = capsule_body()(rotations, torch.zeros(1, 2)).bones
    camera = _camera(1, 96)[torch.zeros(len(steps), dtype=torch.long)]
    pictures = renderer.render_arrays(RenderRequest(("capsules",) * len(steps), bones, camera))
    change = np.abs(pictures[1::2] - pictures[::2])
    assert change.max() < 0.1
    assert change.max() > 1e-4  # it does move


def test_a_picture_does_not_change_when_body_camera_and_light_move_together(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    """Samples belong to the body: nothing flickers with its place in the world."""
    request = _request(batch=1, size=96)
    turn = from_axis_angle(torch.tensor([0.4, -1.1, 0.3]))
    shift = torch.tensor([0.37, -0.21, 1.3])
    bones = turn @ request.bones
    bones[..., 3] += shift
    camera = request.camera
    rotation = camera.rotation @ turn.T
    moved = replace(
        camera,
        rotation=rotation,
        translation=camera.translation - (rotation @ shift[:, None])[..., 0],
    )
    whole = torch.block_diag(turn, torch.eye(1))
    turned = replace(capsule_subject, light=whole @ capsule_subject.light @ whole.T)
    before = renderer_of(capsule_subject, early_stop=0.0).render_arrays(request)
    again = RenderRequest(request.subjects, bones, moved)
    after = renderer_of(turned, early_stop=0.0).render_arrays(again)
    assert before[..., 3].max() > 0.99
    np.testing.assert_allclose(after, before, atol=2e-3)


@pytest.mark.parametrize("kind", ["fused", "reference"])
def test_light_turned_looks_as_if_body_and_camera_turned_the_other_way(
    capsule_subject: VoxelSubject, kind: str, renderer_of: RendererOf
) -> None:
    """And is not what the camera sees without it."""
    subject = shining(capsule_subject)
    renderer = renderer_of(subject, kind=kind)
    request = _request(batch=2)
    angle = torch.tensor([0.8, -2.0])
    changes = torch.stack([angle, torch.ones(2), torch.ones(2)], 1)
    ours = renderer.render_arrays(replace(request, light=changes))
    back = from_axis_angle(-angle[:, None] * torch.eye(3)[1])
    camera = replace(request.camera, rotation=request.camera.rotation @ back.mT)
    turned = replace(request, bones=back[:, None] @ request.bones, camera=camera)
    np.testing.assert_allclose(ours, renderer.render_arrays(turned), atol=5e-3)
    assert np.abs(ours - renderer.render_arrays(request)).max() > 0.05


def test_contrast_and_exposure_change_brightness_about_its_mean(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    renderer = renderer_of(capsule_subject, early_stop=0.0)
    request = _request(batch=1)

    def seen(contrast: float, exposure: float) -> np.ndarray:
        light = torch.tensor([[0.0, contrast, exposure]])
        return renderer.render_arrays(replace(request, light=light))[..., :3]

    flat, filmed, harsh = seen(0, 1), seen(1, 1), seen(2, 1)
    np.testing.assert_allclose(filmed, renderer.render_arrays(request)[..., :3], atol=1e-6)
    np.testing.assert_allclose(harsh - filmed, filmed - flat, atol=1e-4)
    assert np.abs(harsh - filmed).max() > 0.05
    np.testing.assert_allclose(seen(1, 0.5), 0.5 * filmed, atol=1e-4)


def test_a_gradient_does_not_mind_what_was_drawn_since(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    """Memory of the moment is shared by all pictures of a thread."""
    renderer, request = renderer_of(capsule_subject), _request(batch=2)
    weight = np.random.default_rng(1).normal(size=(2, 48, 48, 4)).astype(np.float32)
    alone = renderer.vjp_arrays(request, weight).bones
    bones = request.bones.clone().requires_grad_()
    picture = renderer(replace(request, bones=bones)).rgba
    renderer.vjp_arrays(_request(batch=3, size=64, spread=0.6), np.ones((3, 64, 64, 4)))
    (late,) = torch.autograd.grad(picture, bones, torch.from_numpy(weight))
    np.testing.assert_allclose(late.numpy(), alone, rtol=1e-6, atol=1e-6)


def test_vjp_equals_autograd(capsule_subject: VoxelSubject, renderer_of: RendererOf) -> None:
    renderer = renderer_of(capsule_subject)
    request = _request()
    weight = np.random.default_rng(1).normal(size=(3, 48, 48, 4)).astype(np.float32)
    leaves = [request.bones, *(getattr(request.camera, name) for name in CAMERA), lit(request)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    camera = replace(request.camera, **dict(zip(CAMERA, leaves[1:-1], strict=True)))
    rgba = renderer(replace(request, bones=leaves[0], camera=camera, light=leaves[-1])).rgba
    expected = torch.autograd.grad((rgba * torch.from_numpy(weight)).sum(), leaves)
    for ours, theirs in zip(renderer.vjp_arrays(request, weight), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_a_batch_equals_its_items_whatever_the_order_of_subjects(
    capsule_subject: VoxelSubject, device: torch.device
) -> None:
    other = painted_subject("other", hue=2.0)
    renderer = make_renderer(
        RendererConfig(), {capsule_subject.name: capsule_subject, other.name: other}, device
    )
    request = replace(_request(batch=4), subjects=("capsules", "other", "capsules", "other"))
    together = renderer.render_arrays(request)
    for item in range(4):
        alone = renderer.render_arrays(request[[item]])
        np.testing.assert_array_equal(together[item], alone[0])
    assert np.abs(together[0] - renderer.render_arrays(request[[0, 2]])[1]).max() > 0.1


def test_a_limb_in_front_hides_the_trunk(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    """A forearm before the belly: its own colours show, and the trunk's beside it."""
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    down, forward = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, -0.6, 0.0])
    rotations[0, JOINT["left_shoulder"]] = from_axis_angle(forward) @ from_axis_angle(down)
    rotations[0, JOINT["left_elbow"]] = from_axis_angle(torch.tensor([0.0, -1.8, 0.0]))
    posed = capsule_body()(rotations, torch.zeros(1, 2))
    size = 128
    straight = orbit(
        torch.tensor([[0.0, 0.95, 0.0]]),
        *(torch.zeros(1) for _ in range(3)),
        torch.tensor([3.0]),
        torch.tensor([1.2 * size]),
        torch.full((1, 2), size / 2),
        size,
        size,
    )
    renderer = renderer_of(capsule_subject)
    request = RenderRequest(("capsules",), posed.bones, straight)
    picture = renderer.render_arrays(request)[0]
    reference = renderer_of(capsule_subject, kind="reference").render_arrays(request)[0]
    np.testing.assert_allclose(picture, reference, atol=2e-3)
    middle = 0.5 * (posed.joints[0, JOINT["left_elbow"]] + posed.joints[0, JOINT["left_wrist"]])
    assert middle[2] > 0.17  # in front of the trunk: radii 0.12 and 0.04
    local = straight.rotation[0] @ middle + straight.translation[0]
    x, y = (local[:2] / local[2] * straight.focal + straight.principal[0]).tolist()
    # the forearm's front in the rest pose is what its posed front shows
    inverse = torch.linalg.inv(posed.bones[0, JOINT["left_elbow"], :, :3])
    front = middle + torch.tensor([0.0, 0.0, 0.04])
    rest = inverse @ (front - posed.bones[0, JOINT["left_elbow"], :, 3])
    belly = torch.tensor([middle[0], middle[1], 0.12])
    shown = picture[int(y), int(x), :3]
    assert np.abs(shown - _paint(rest)).max() < 0.2
    assert np.abs(shown - _paint(belly)).max() > 0.4


def _paint(place: torch.Tensor) -> np.ndarray:
    """The colours of `bodies.painted_subject`."""
    phase = torch.tensor([0.0, 2.1, 4.2])
    return (0.5 + 0.4 * torch.sin(place @ torch.tensor([6.0, 9.0, 15.0]) + phase)).numpy()


def test_one_layer_leaves_gaps_that_four_fill(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    request = _request(batch=4, size=96, spread=0.5)
    four = renderer_of(capsule_subject, layers=4).render_arrays(request)[..., 3]
    one = renderer_of(capsule_subject, layers=1).render_arrays(request)[..., 3]
    assert (four - one).min() > -2e-3
    assert (four - one).max() > 0.5


def test_nothing_in_view_is_an_empty_picture_with_zero_gradient(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    renderer = renderer_of(capsule_subject)
    request = _request(batch=1)
    away = replace(request.camera, principal=request.camera.principal + 1000.0)
    request = replace(request, camera=away)
    assert not renderer.render_arrays(request).any()
    gradients = renderer.vjp_arrays(request, np.ones((1, 48, 48, 4), np.float32))
    assert not any(gradient.any() for gradient in gradients)


def test_more_images_than_fit_one_launch(
    capsule_subject: VoxelSubject, renderer_of: RendererOf
) -> None:
    request = _request(batch=18, size=24)
    renderer = renderer_of(capsule_subject)
    together = renderer.render_arrays(request)
    np.testing.assert_array_equal(together[17], renderer.render_arrays(request[[17]])[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": ("nobody",)}, "does not hold the subject 'nobody'"),
        ({"subjects": ()}, "is empty"),
        ({"bones": torch.zeros(1, 23, 3, 4)}, "bones has shape"),
        ({"bones": torch.full((1, 24, 3, 4), torch.nan)}, "NaN"),
        ({"bones": torch.zeros(1, 24, 3, 4, dtype=torch.float64)}, "float64"),
    ],
)
def test_bad_requests_are_refused(
    capsule_subject: VoxelSubject, change: dict[str, object], message: str, renderer_of: RendererOf
) -> None:
    request = replace(_request(batch=1), **change)  # type: ignore[arg-type]
    with pytest.raises(RenderError, match=message):
        renderer_of(capsule_subject).render_arrays(request)
