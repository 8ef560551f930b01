"""How much random data does an estimator's late part need, and how many steps?

    python benchmarks/data_size.py OUT draw [WORKER WORKERS]     random and source images' features
    python benchmarks/data_size.py OUT tune IMAGES:STEPS:SEED …  a line of JSON for each

Drawn images become features at once (in parts of 400 images, 35 MB each), so that 32,000 of them
fit on a disk and in memory; several workers may draw side by side, and go on where they were. Sets
are nested: a larger one begins with a smaller one. As many source images are beside the random
ones, at most 2,400, and half of every batch is theirs; each image also mirrored. Estimators are
tested on the validation people (240 images of source clips, 480 of unseen ones), as they are and
interpolated with the pre-trained weights. Settings are those of `experiment=ood
estimator=compact_hmr`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from posegen_ray.compose import compose_config
from posegen_ray.config import FineTuneConfig, FineTuneStageConfig, RunConfig
from posegen_ray.console import Console
from posegen_ray.drawing import Drawing
from posegen_ray.estimators.augment import Labels
from posegen_ray.estimators.features import (
    KeptFeatures,
    image_features,
    keep_features,
    predict_from,
)
from posegen_ray.estimators.finetune import interpolate, run_stage
from posegen_ray.estimators.registry import build_estimator
from posegen_ray.evaluation.metrics import mpjpe, pa_mpjpe
from posegen_ray.local import LocalBackend
from posegen_ray.records import Samples, concatenate_samples
from posegen_ray.seeding import derive_seed

PART = 400  # images
SOURCE, RANDOM = 2400, 32000  # at most
TESTS = {"val_source": 240, "validation": 480}
CUT, RATE, BATCH = "late", 3e-4, 32
SHARES = (1.0, 0.7)  # of the fine-tuned weights


def main(out: Path, action: str, words: Sequence[str]) -> None:
    config = compose_config(["experiment=ood", "estimator=compact_hmr", "runtime=inprocess"])
    torch.set_num_threads(1)
    with LocalBackend(config, Console()) as backend:
        out.mkdir(parents=True, exist_ok=True)
        drawing = Drawing(config, out, backend, Console())
        if action == "draw":
            first, step = map(int, words or ("0", "1"))
            draw(drawing, out, first, step)
        else:
            tests = {name: drawing.shoot(name, count) for name, count in TESTS.items()}
            tune(config, out, tests, [tuple(map(int, word.split(":"))) for word in words])


def draw(drawing: Drawing, out: Path, first: int, step: int) -> None:
    """Every `step`th part that is not there, from the `first` on."""
    drawer, estimator = drawing.drawer(), build_estimator(drawing.config.estimator)
    for folder in list(parts(out, SOURCE, RANDOM))[first::step]:
        if folder.exists():
            continue
        kind, number = folder.name.split("-")
        samples: list[Samples] = []
        tried = 0
        while (missing := PART - sum(map(len, samples))) > 0:
            count = min(missing, drawing.config.experiment.block_size)
            seeds = [derive_seed(0, "curve", kind, int(number), tried + i) for i in range(count)]
            tried += count
            samples.append((drawer.source if kind == "source" else drawer.random)(seeds)[0])
        settings = stage_of(drawing.config, 1)
        source = PART if kind == "source" else 0
        together = concatenate_samples(samples)
        keep_features(estimator, together, settings, int(number), source=source).write(folder)
        print(folder.name, flush=True)


def tune(
    config: RunConfig,
    out: Path,
    tests: dict[str, Samples],
    wanted: Sequence[tuple[int, ...]],  # images, steps, seed
) -> None:
    """Fine-tunes and tests; prints."""
    start = build_estimator(config.estimator)
    features: dict[str, Tensor] = {}
    for name, samples in tests.items():
        found = image_features(start, samples.images, stage_of(config, 1), BATCH)
        assert found is not None
        features[name] = found
    for images, steps, seed in wanted:
        kept = together(parts(out, min(SOURCE, images or SOURCE), images))
        settings, tuned = stage_of(config, steps, 0.5 if images else -1.0), deepcopy(start)
        began = time.monotonic()
        run_stage(tuned, kept, settings.stages[0], settings, seed, body=config.body.name)
        row: dict[str, object] = {"images": images, "steps": steps, "seed": seed}
        row["seconds"] = round(time.monotonic() - began)
        for share in SHARES:
            mixed = deepcopy(tuned)
            interpolate(start, mixed, share)
            for name, samples in tests.items():
                answers = predict_from(mixed.eval(), features[name], CUT, BATCH)
                row[f"{name}@{share}"] = [
                    round(float(measure(answers, samples.joints).mean()), 1)
                    for measure in (mpjpe, pa_mpjpe)
                ]
        print(json.dumps(row), flush=True)


def parts(out: Path, source: int, random: int) -> Iterator[Path]:
    """The folders of so many images."""
    for kind, images in (("source", source), ("random", random)):
        for number in range(-(-images // PART)):
            yield out / f"{kind}-{number:03d}"


def together(folders: Iterator[Path]) -> KeptFeatures:
    """All parts as one; only one of them is in memory twice."""
    names = list(folders)
    labels, source = [], []
    features = torch.empty(0)
    for number, folder in enumerate(names):
        part = KeptFeatures.read(folder)
        count = len(part.features)
        if number == 0:
            features = part.features.new_empty(len(names) * count, *part.features.shape[1:])
        features[number * count : (number + 1) * count] = part.features
        labels.append(part.labels)
        source.append(part.source)
    joined = Labels(
        *(
            torch.cat([getattr(label, name) for label in labels])
            for name in ("joints", "joints_2d", "rotations", "shape")
        )
    )
    return KeptFeatures(CUT, features, joined, torch.cat(source))


def stage_of(config: RunConfig, steps: int, source_share: float = -1.0) -> FineTuneConfig:
    """One stage at the cut, of so many steps."""
    stage = FineTuneStageConfig(CUT, steps, BATCH, RATE)
    return replace(config.finetune, stages=[stage], source_share=source_share, max_feature_mb=9000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
