"""Fine-tuning learns, is reproducible, keeps to its limits and can be interrupted."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from posegen_ray.body.camera import Camera
from posegen_ray.body.skeleton import LIMB_JOINT_NAMES
from posegen_ray.config import FineTuneConfig, FineTuneStageConfig, LossConfig
from posegen_ray.errors import CheckpointError, ConfigError, DataError, ResourceError, TrainingError
from posegen_ray.estimators import load_estimator, predict
from posegen_ray.estimators.base import Estimate, PoseEstimator, centred
from posegen_ray.estimators.crop import CropSpec
from posegen_ray.estimators.features import (
    KeptFeatures,
    image_features,
    keep_features,
    predict_from,
)
from posegen_ray.estimators.finetune import (
    _mixed_batches,
    finetune,
    finetune_kept,
    interpolate,
    run_stage,
)
from posegen_ray.estimators.online import FineTuner
from posegen_ray.estimators.progress import FineTuneSteps, finetune_size
from posegen_ray.records import Samples


class Toy(PoseEstimator):
    """Two layers on 16 x 16 images, with a cut between them."""

    name = "toy"
    joint_names = LIMB_JOINT_NAMES
    crop = CropSpec(size=16)
    cuts = ("image", "late")

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.last = nn.Linear(128, 36)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Estimate:
        return self.head(self.stem(images, "late"), "late")

    def stem(self, images: Tensor, cut: str, start: str = "image") -> Tensor:
        return images if cut == start else torch.relu(self.first(images)).flatten(1)

    def head(self, features: Tensor, cut: str) -> Estimate:
        if cut == "image":
            return self(features)
        return Estimate(self.last(features).unflatten(1, (12, 3)))

    def tail_parameters(self, cut: str) -> list[nn.Parameter]:
        return list(self.parameters() if cut == "image" else self.last.parameters())


def make_samples(count: int, size: int = 16, seed: int = 0) -> Samples:
    """Images whose brightness in three bands says how far three groups of joints reach."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, 3, generator=generator)
    images = level[:, :, None, None].expand(-1, -1, size, size) * 255
    reach = level.repeat_interleave(4, 1)[..., None]  # [count, 12, 1]
    joints = centred(reach * torch.tensor([0.3, 0.5, 0.2]) * torch.arange(12)[:, None] / 12)
    eye = torch.eye(3).expand(count, 3, 3)
    one = torch.ones(count)
    return Samples(
        images=images.byte(),
        joints=joints,
        joints_2d=torch.zeros(count, 12, 2),
        rotations=torch.eye(3).expand(count, 24, 3, 3),
        shape=torch.zeros(count, 10),
        camera=Camera(eye, torch.zeros(count, 3), one, torch.zeros(count, 2), size, size),
        view=torch.zeros(count, 3),
        subjects=("anna",) * count,
        clips=("walk",) * count,
        seeds=torch.arange(count),
    )


def error(estimator: PoseEstimator, samples: Samples) -> float:
    return float((predict(estimator, samples.images) - samples.joints).norm(dim=-1).mean())


CONFIG = FineTuneConfig(
    stages=[FineTuneStageConfig("late", 150, 16, 1e-2), FineTuneStageConfig("image", 50, 16, 1e-3)],
    interpolation=1.0,
    mirrored=False,
)


def test_it_learns_and_leaves_the_original_alone():
    estimator, samples, held_out = Toy(), make_samples(64), make_samples(32, seed=1)
    before = {name: value.clone() for name, value in estimator.state_dict().items()}
    start = error(estimator, held_out)
    seen = []
    tuned = finetune(estimator, samples, CONFIG, 0, validate=lambda cut, e: seen.append(cut))
    assert error(tuned, held_out) < 0.3 * start
    assert all(torch.equal(before[name], value) for name, value in estimator.state_dict().items())
    assert seen == ["start", "late", "image", "end"]
    assert not any(p.requires_grad or p.grad is not None for p in tuned.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    config = replace(CONFIG, augmented_copies=1, stages=[FineTuneStageConfig("late", 20, 16, 1e-2)])
    weights = [finetune(Toy(), make_samples(40), config, seed).last.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_stages_run_one_by_one_equal_the_whole():
    samples = make_samples(40)
    whole = finetune(Toy(), samples, replace(CONFIG, interpolation=0.7), 0)
    stepwise = Toy()
    for stage in CONFIG.stages:
        resumed = Toy()
        resumed.load_state_dict(stepwise.state_dict())  # as from a checkpoint
        run_stage(resumed, keep_features(resumed, samples, CONFIG, 0), stage, CONFIG, 0)
        stepwise = resumed
    interpolate(Toy(), stepwise, 0.7)
    assert torch.equal(stepwise.last.weight, whole.last.weight)
    assert torch.equal(stepwise.first.weight, whole.first.weight)


def test_a_stage_trains_only_what_lies_behind_its_cut():
    tuned = Toy()
    config = replace(CONFIG, stages=[FineTuneStageConfig("late", 5, 8, 1e-2)])
    run_stage(tuned, keep_features(tuned, make_samples(20), config, 0), config.stages[0], config, 0)
    assert torch.equal(tuned.first.weight, Toy().first.weight)
    assert not torch.equal(tuned.last.weight, Toy().last.weight)


def test_a_stage_that_diverges_says_so():
    kept = keep_features(Toy(), make_samples(20), CONFIG, 0)
    kept.features[3] = float("inf")
    with pytest.raises(TrainingError, match=r"diverged at step .* stage 'image'.*Lower its learn"):
        run_stage(Toy(), kept, CONFIG.stages[1], CONFIG, 0)


def _rows(kept: KeptFeatures) -> Tensor:  # [N, F + 36] in an order of its own
    rows = torch.cat([kept.features.float().flatten(1), kept.labels.joints.flatten(1)], 1)
    return rows[rows[:, -1].argsort()]


def test_features_kept_on_disk_and_continued_are_those_of_all_images_together(tmp_path):
    samples = make_samples(40)
    keep_features(Toy(), samples[:24], CONFIG, 0, source=24).write(tmp_path / "kept")
    before = KeptFeatures.read(tmp_path / "kept")
    parts = keep_features(Toy(), samples[24:], CONFIG, 0, before=before)
    whole = keep_features(Toy(), samples, CONFIG, 0, source=24)
    assert torch.equal(parts.source, whole.source)
    for kept in (parts, whole):
        assert len(kept.features) == len(kept.labels) == 40
    # the same images, though batches were cut elsewhere
    assert torch.equal(_rows(parts), _rows(whole))
    one, other = (finetune_kept(Toy(), kept, CONFIG, 0) for kept in (parts, parts))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_answers_from_kept_features_are_those_of_the_images():
    estimator, images = Toy(), make_samples(20).images
    late = replace(CONFIG, stages=[stage for stage in CONFIG.stages if stage.cut == "late"])
    features = image_features(estimator, images, late, 16)
    assert torch.equal(predict_from(estimator, features, "late", 16), predict(estimator, images))


@pytest.mark.parametrize("stages", [CONFIG.stages, []])
def test_features_of_looked_at_images_are_not_kept_where_nothing_comes_before(stages):
    config = replace(CONFIG, stages=stages)
    assert image_features(Toy(), make_samples(20).images, config, 16) is None


def test_features_of_looked_at_images_are_not_kept_beyond_the_limit():
    late = replace(CONFIG, stages=[FineTuneStageConfig("late", 1)], max_feature_mb=1)
    images = make_samples(20).images
    assert image_features(Toy(), images, late, 16) is not None
    count = 250_000 // Toy().stem(images[:1].float(), "late").numel() + 1
    assert image_features(Toy(), images[:1].expand(count, -1, -1, -1), late, 16) is None


def test_interpolation_goes_part_of_the_way():
    start, end = Toy(0), Toy(1)
    expected = 0.3 * start.last.weight + 0.7 * end.last.weight
    interpolate(start, end, 0.7)
    assert torch.allclose(end.last.weight, expected, atol=1e-6)


def test_progress_reaches_its_end():
    steps = []
    finetune(Toy(), make_samples(20), CONFIG, 0, progress=steps.append)
    ends = {p.phase: (p.done, p.total) for p in steps}
    assert ends["late: training"] == (150, 150)
    assert ends["features"] == (20, 20)


@pytest.mark.parametrize("expected", [20, 40])
def test_a_bar_moves_while_features_are_computed_and_ends_where_it_was_said_to(expected):
    moves = []
    bar = FineTuneSteps(moves.append, CONFIG, expected)
    features = []
    finetune(
        Toy(),
        make_samples(20),
        CONFIG,
        0,
        progress=lambda report: (bar(report), report.phase == "features" and features.append(1)),
    )
    assert sum(moves[: len(features)]) == -(-expected // 16)
    assert sum(move > 0 for move in moves[: len(features)]) > 1
    bar.finish()
    assert sum(moves) == finetune_size(CONFIG, expected)
    assert min(moves) >= 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_labels_that_are_not_finite_are_refused(bad):
    samples = make_samples(8)
    samples.joints[3, 2, 1] = bad
    with pytest.raises(DataError, match=r"1 of 8 samples.*row 3, seed 3"):
        finetune(Toy(), samples, CONFIG, 0)
    with pytest.raises(DataError, match="not finite"):
        FineTuner(Toy(), CONFIG).step(samples)


def test_wrong_or_no_images_are_refused():
    with pytest.raises(DataError, match=r"\(3, 8, 8\), but toy takes \(3, 16, 16\)"):
        finetune(Toy(), make_samples(4, size=8), CONFIG, 0)
    with pytest.raises(DataError, match="no samples"):
        finetune(Toy(), make_samples(4)[:0], CONFIG, 0)


def test_features_beyond_the_memory_limit_are_refused_before_they_are_made():
    config = replace(CONFIG, max_feature_mb=1, augmented_copies=20)
    with pytest.raises(ResourceError, match="max_feature_mb=1"):
        keep_features(Toy(), make_samples(200), config, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FineTuneStageConfig(steps=-1), "must not be negative"),
        (lambda: FineTuneStageConfig(batch_size=0), "batch_size=0"),
        (lambda: FineTuneStageConfig(learning_rate=0.0), r"learning_rate=0\.0 must be positive"),
        (lambda: FineTuneConfig(interpolation=1.5), r"interpolation=1\.5"),
        (lambda: FineTuneConfig(augmented_copies=-1), "augmented_copies"),
        (lambda: FineTuneConfig(online_learning_rate=-1.0), "online_learning_rate"),
        (lambda: FineTuneConfig(source_share=1.5), r"source_share=1\.5"),
        (lambda: FineTuneConfig(ema=1.0), r"ema=1\.0"),
        (lambda: FineTuneConfig(max_gradient_norm=0.0), r"max_gradient_norm=0\.0"),
        (lambda: LossConfig(joints=-1.0), "negative, or all zero"),
        (lambda: LossConfig(joints=0.0), "negative, or all zero"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_online_steps_learn():
    estimator, samples = Toy(), make_samples(32)
    tuner = FineTuner(estimator, replace(CONFIG, online_learning_rate=1e-2))
    losses = [tuner.step(samples) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    assert not any(p.requires_grad for p in estimator.parameters())


def test_resumed_online_training_equals_uninterrupted():
    samples = [make_samples(8, seed=seed) for seed in range(6)]
    straight = FineTuner(Toy(), CONFIG)
    losses = [straight.step(batch) for batch in samples]
    first = FineTuner(Toy(), CONFIG)
    for batch in samples[:3]:
        first.step(batch)
    second = FineTuner(Toy(), CONFIG)
    second.load_state_dict(first.state_dict())
    assert [second.step(batch) for batch in samples[3:]] == losses[3:]
    ends = straight.state_dict(), second.state_dict()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_averaged_gradients_of_two_halves_equal_the_whole_batch():
    samples = make_samples(16)
    whole = FineTuner(Toy(), CONFIG)
    whole.step(samples)

    halves: list[list[Tensor]] = []
    for rows in (slice(0, 8), slice(8, 16)):
        FineTuner(Toy(), CONFIG, lambda g: halves.append([x.clone() for x in g])).step(
            samples[rows]
        )
    mean = [(a + b) / 2 for a, b in zip(*halves, strict=True)]

    def reduce(gradients: list[Tensor]) -> None:
        for gradient, value in zip(gradients, mean, strict=True):
            gradient.copy_(value)

    half = FineTuner(Toy(), CONFIG, reduce)
    half.step(samples[:8])
    for a, b in zip(whole.estimator.parameters(), half.estimator.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("cut", "accumulate"), [("late", 2), ("image", 5), ("late", 16)])
def test_a_batch_in_parts_makes_the_update_of_the_whole_batch(cut, accumulate):
    config = replace(CONFIG, online_cut=cut)
    whole, parts = FineTuner(Toy(), config), FineTuner(Toy(), config, accumulate=accumulate)
    for seed in range(3):
        samples = make_samples(13, seed=seed)
        assert parts.step(samples) == pytest.approx(whole.step(samples), rel=1e-5)
    for a, b in zip(whole.estimator.parameters(), parts.estimator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_in_bf16_it_learns_in_fp32_weights():
    samples, held_out = make_samples(32), make_samples(16, seed=1)
    config = replace(CONFIG, online_learning_rate=1e-2, online_cut="image")
    ends = []
    for precision in ("fp32", "bf16"):
        tuner = FineTuner(Toy(), config, precision=precision)
        losses = [tuner.step(samples) for _ in range(60)]
        assert losses[-1] < 0.3 * losses[0]
        assert all(p.dtype == torch.float32 for p in tuner.estimator.parameters())
        ends.append(error(tuner.estimator, held_out))
    assert ends[1] == pytest.approx(ends[0], rel=0.25)


def test_a_gradient_that_is_not_finite_changes_nothing():
    def spoil(gradients: list[Tensor]) -> None:
        gradients[0].fill_(float("nan"))

    estimator = Toy()
    tuner = FineTuner(estimator, CONFIG, spoil)
    tuner.step(make_samples(8))
    assert tuner.skipped == 1
    assert torch.equal(estimator.last.weight, Toy().last.weight)


def test_state_of_another_cut_is_refused():
    state = FineTuner(Toy(), CONFIG).state_dict()
    with pytest.raises(CheckpointError, match="does not fit toy at the cut 'image'"):
        FineTuner(Toy(), replace(CONFIG, online_cut="image")).load_state_dict(state)


@pytest.mark.parametrize("share", [0.25, 0.0, 1.0])
def test_batches_take_the_wanted_share_of_source_images(share):
    source = torch.arange(30) < 10
    order = _mixed_batches(source, 8, share, torch.Generator().manual_seed(0))
    rows = [next(order) for _ in range(20)]
    assert all(source[batch].sum() == round(8 * share) for batch in rows)
    seen = torch.cat(rows)
    if share < 1:
        assert set(seen[~source[seen]].tolist()) == set(range(10, 30))
    if share > 0:
        assert set(seen[source[seen]].tolist()) == set(range(10))


def test_mixing_needs_images_of_both_kinds():
    config = replace(CONFIG, source_share=0.5)
    with pytest.raises(ConfigError, match=r"source_share=0\.5 cannot be had from 0 source images"):
        finetune(Toy(), make_samples(8), config, 0)
    assert finetune(Toy(), make_samples(8), config, 0, source=4).last.weight.isfinite().all()


def test_copies_of_source_images_are_source_images():
    config = replace(CONFIG, mirrored=True, augmented_copies=1)
    kept = keep_features(Toy(), make_samples(20), config, 0, source=3)
    assert kept.source.sum() == 9
    assert len(kept.labels) == len(kept.features) == 60


def test_the_moving_average_lags_behind_the_weights():
    stage = FineTuneStageConfig("late", 40, 8, 1e-2)
    ends = [
        finetune(Toy(), make_samples(20), replace(CONFIG, stages=[stage], ema=ema), 0).last.weight
        for ema in (0.0, 0.5, 0.99)
    ]
    moved = [(end - Toy().last.weight).norm() for end in ends]
    assert moved[0] > moved[2]
    assert (ends[1] - ends[0]).norm() < (ends[2] - ends[0]).norm()


def test_blazepose_learns_a_few_steps():
    estimator = load_estimator("blazepose")
    samples = make_samples(8, size=256)
    config = FineTuneConfig(
        stages=[
            FineTuneStageConfig("late", 12, 8, 1e-4, 2),
            FineTuneStageConfig("early", 2, 4, 3e-5),
        ]
    )
    losses = []
    tuned = finetune(estimator, samples, config, 0, progress=lambda p: losses.append(p.loss))
    assert error(tuned, samples) < error(estimator, samples)
