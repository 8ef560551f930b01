"""Subjects as the user handles them: captures converted, subjects fitted, listed, shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from posegen_ray.body import load_body
from posegen_ray.config import RunConfig
from posegen_ray.console import Console
from posegen_ray.errors import ConfigError, ResourceError, SubjectError
from posegen_ray.jobs import FitCapture, FitPerson, subjects_root, training_people
from posegen_ray.local import Backend
from posegen_ray.motion.splits import gather, load_splits
from posegen_ray.subjects.capture import capture_name, joints_in_mask, write_capture
from posegen_ray.subjects.converters import convert
from posegen_ray.subjects.fit import FitProgress
from posegen_ray.subjects.gallery import pose_sheet, turntable, write_gif
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import (
    AnerfSubject,
    Subject,
    VoxelSubject,
    list_subjects,
    load_subject,
    read_manifest,
)

_POSES = 18  # on a sheet
_COVERED = 0.7  # share of joints inside the masks below which a conversion looks wrong


def convert_capture(config: RunConfig, console: Console) -> str:
    """Writes the capture that config.convert describes to config.out; says how to fit it."""
    if not config.out:
        raise ConfigError("No folder is named for the capture.", "Add out=<folder>.")
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):  # known before the minutes of reading
        raise ConfigError(f"out={config.out} is not empty.", "Remove it or choose another folder.")
    capture, body = convert(config.convert, config.body)
    write_capture(capture, out)
    share = joints_in_mask(capture, load_body(body, console.say))
    worst = int(share.argmin())
    text = (
        f"{out}: {capture.name}, {len(capture)} pictures, {int(capture.held_out.sum())} held out\n"
        f"joints inside the mask: {share.mean():.0%} on average, {share[worst]:.0%} in the worst "
        f"picture (images/{worst:05d}.png)"
    )
    if float(share.mean()) < _COVERED:
        text += "\nThat is little: do poses, cameras and masks belong together?"
    options = f" body=smpl body.smpl_folder={body.smpl_folder} body.gender={body.gender}"
    return f"{text}\nposegen fit capture={out}{options if body.name == 'smpl' else ''}"


def fit_capture(config: RunConfig, console: Console) -> str:
    """Makes a subject from the capture folder config.capture, named like the capture."""
    if not config.capture:
        raise ConfigError(
            "No capture is named.",
            "Add capture=<folder>, or subjects=[<folder>,…] for several; see docs/captures.md.",
        )
    job = FitCapture(config, config.capture)
    bar = console.bar("fitting", job.size, "step")

    def watch(progress: FitProgress) -> None:
        bar.set_postfix_str(f"{progress.psnr:.1f} dB", refresh=False)

    try:
        return job.run(bar.update, watch)
    finally:
        bar.close()


def fit_several(config: RunConfig, backend: Backend, console: Console) -> str:
    """Fits the subjects that config.subjects lists, side by side; a line for each."""
    jobs: list[FitCapture | FitPerson] = []
    for entry in config.subjects:
        if (Path(entry) / "capture.json").is_file():
            jobs.append(FitCapture(config, entry))
        elif entry in training_people(config):
            jobs.append(FitPerson(config, entry))
        else:
            raise ConfigError(
                f"subjects: {entry!r} is neither a capture folder nor a person to film.",
                f"People of subject.source={config.subject.source}: "
                f"{', '.join(training_people(config))}.",
            )

    names: dict[str, str] = {}
    for job in jobs:
        if isinstance(job, FitCapture):
            name = capture_name(job.capture)
            if name in names:
                raise ConfigError(
                    f"The captures {names[name]} and {job.capture} are both named {name!r}: their "
                    "subjects would lie in the same folder.",
                    'Change "name" in the capture.json of one of them.',
                )
            names[name] = job.capture

    def tell(number: int, result: str) -> None:
        if isinstance(jobs[number], FitPerson):
            result = f"{result}: {read_manifest(result).quality}"
        lines[number] = result
        console.say(result)

    lines = [""] * len(jobs)
    backend.run(jobs, "fitting", "step", keep=tell)
    return "\n".join(lines)


def list_people(config: RunConfig) -> str:
    """One line for each subject in the folder that settings name."""
    root = subjects_root(config)
    lines = []
    for name in list_subjects(root):
        try:
            manifest = read_manifest(root / name)
        except SubjectError as error:
            lines.append(f"{name:24} {error}")
            continue
        lines.append(f"{name:24} {manifest.body:6} {manifest.quality}")
    return "\n".join(lines) or f"no subjects in {root}"


def show_person(config: RunConfig, name: str) -> str:
    """All that is known about a subject."""
    folder = _find(config, name)
    manifest = read_manifest(folder)
    subject = load_subject(folder)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    rows = {
        "folder": str(folder),
        "body": manifest.body,
        "shape": " ".join(f"{value:+.2f}" for value in manifest.shape),
        "quality": manifest.quality,
        **_field_rows(subject),
        "size": f"{size:.1f} MB",
        "capture": f"{manifest.source} (sha256 {manifest.capture_sha256[:12] or 'none'})",
        "licence": manifest.licence,
    }
    return "\n".join(f"{key:10} {value}" for key, value in rows.items())


def _field_rows(subject: Subject) -> dict[str, str]:
    if isinstance(subject, AnerfSubject):
        network = subject.field.config
        return {"field": f"A-NeRF, {network.depth} x {network.width}, {network.steps:,} steps"}
    assert isinstance(subject, VoxelSubject)
    grid, cells = subject.field, subject.lattice.tets
    return {
        "field": f"{len(grid.values):,} vertices of {1000 * grid.voxel:.0f} mm",
        "lattice": f"{len(cells):,} tetrahedra",
    }


def picture_person(config: RunConfig, name: str) -> str:
    """Writes turntable.gif and poses.png into config.out (the subject's folder when empty)."""
    folder = _find(config, name)
    subject = load_subject(folder)
    body = load_body(config.body)
    if body.name != subject.body:
        raise SubjectError(
            f"Subject {name!r} was made on the {subject.body} body, not on {body.name}.",
            f"Add body={subject.body}.",
        )
    renderer = make_renderer(config.renderer, {subject.name: subject})
    poses, _ = gather(load_splits(config.motion).source_train)
    frames = torch.linspace(0, len(poses) - 1, _POSES).round().long()
    out = Path(config.out) if config.out else folder
    animation, sheet = out / "turntable.gif", out / "poses.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_gif(turntable(subject.manifest, body, renderer), animation)
        pictures: np.ndarray = pose_sheet(subject.manifest, body, renderer, poses[frames])
        Image.fromarray(pictures).save(sheet)
    except OSError as error:
        raise ResourceError(
            f"The pictures cannot be written to {out} ({error.strerror or error}).",
            "Choose a writable folder with out=….",
        ) from error
    return f"{animation}\n{sheet}"


def _find(config: RunConfig, name: str) -> Path:
    """The folder of a subject; a wardrobe person's own name will do for the latest of its fits."""
    root = subjects_root(config)
    known = list_subjects(root)
    if name in known:
        return root / name
    fits = [other for other in known if other.rsplit("-", 1)[0] == name]
    if not fits:
        raise SubjectError(
            f"There is no subject {name!r} in {root}.",
            f"Known: {', '.join(known) or 'none'}. Other folders: subject.folder=….",
        )
    return root / max(fits, key=lambda other: (root / other / "manifest.json").stat().st_mtime)
