"""From a user's SMPL file and frames to people fitted side by side by job workers, one of which is
killed in the middle."""

import json

import numpy as np
import torch
from bodies import capsule_smpl, painted_on
from PIL import Image
from runtime_fakes import FitKilledOnce

from posegen_ray.body import load_body
from posegen_ray.body.camera import orbit
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.cli import main
from posegen_ray.compose import compose_config
from posegen_ray.config import BodyConfig, RendererConfig
from posegen_ray.jobs import FitCapture
from posegen_ray.records import RenderRequest
from posegen_ray.runtime.job_workers import JobWorkers
from posegen_ray.subjects.capture import split_rgba
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import load_subject

FRAMES, SIZE = 16, 64
FIT = ["fit.steps=60", "fit.keep_every=20", "fit.region.voxel=0.015"]
RUNTIME = ["runtime.job_workers=2", "runtime.job_resources.num_cpus=0.25"]


def write_frames(folder, body, subject):
    """Pictures from all sides as the `frames` converter reads them."""
    stream = torch.Generator().manual_seed(0)
    rotations = from_axis_angle(0.15 * torch.randn(FRAMES, 24, 3, generator=stream))
    place = torch.tensor([0.1, 0.0, -0.1]).expand(FRAMES, 3)
    posed = body(rotations, subject.shape[None], place)
    ones = torch.ones(FRAMES)
    camera = orbit(
        posed.joints[:, 0],
        2.4 * torch.arange(FRAMES),
        0.2 * ones,
        0.0 * ones,
        3.0 * ones,
        1.2 * SIZE * ones,
        torch.full((FRAMES, 2), SIZE / 2),
        SIZE,
        SIZE,
    )
    renderer = make_renderer(RendererConfig(), {subject.name: subject})
    request = RenderRequest((subject.name,) * FRAMES, posed.bones, camera)
    images, masks = split_rgba(torch.from_numpy(renderer.render_arrays(request)))
    for kind, pixels in (("images", images), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for frame in range(FRAMES):
            Image.fromarray(pixels[frame].numpy()).save(folder / kind / f"{frame:03d}.png")
    cameras = [
        {
            "K": [[1.2 * SIZE, 0, SIZE / 2], [0, 1.2 * SIZE, SIZE / 2], [0, 0, 1]],
            "R": camera.rotation[frame].double().tolist(),
            "t": camera.translation[frame].tolist(),
        }
        for frame in range(FRAMES)
    ]
    (folder / "cameras.json").write_text(json.dumps({"pixel_centres": 0.5, "cameras": cameras}))
    betas = np.zeros(10, np.float32)
    np.savez(folder / "poses.npz", rotations=rotations, trans=place, betas=betas)


def test_people_on_smpl_are_fitted_side_by_side_though_a_worker_is_killed(
    ray_session, tmp_path, capsys
):
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **capsule_smpl())
    smpl = ["body=smpl", f"body.smpl_folder={tmp_path}"]
    body = load_body(BodyConfig(name="smpl", smpl_folder=str(tmp_path)))
    captures = []
    for name, hue in (("ann", 0.0), ("bo", 2.0)):
        write_frames(tmp_path / name, body, painted_on(body, name, hue))
        captures.append(tmp_path / f"{name}-capture")
        source = ["convert.format=frames", f"convert.source={tmp_path / name}"]
        assert main(["convert", *source, *smpl, f"out={captures[-1]}"]) == 0
        assert "joints inside the mask: 100% on average" in capsys.readouterr().out

    config = compose_config([*FIT, *RUNTIME, *smpl, f"out={tmp_path / 'fits'}"])
    killed = FitKilledOnce(FitCapture(config, str(captures[0])), 30, tmp_path / "seen")
    workers = JobWorkers(config.runtime)
    try:
        jobs = [killed, FitCapture(config, str(captures[1]))]
        lines = dict(workers.run(jobs, lambda _: None, lambda: 0, "fitting"))
    finally:
        workers.close()
    # the second attempt goes on where the first one had kept its state
    assert (tmp_path / "seen").read_text().split() == ["30", "killed", "21"]
    for number, name in enumerate(("ann", "bo")):
        subject = load_subject(tmp_path / "fits" / name)
        assert (subject.body, subject.manifest.fit_steps) == ("smpl", 60)
        assert subject.manifest.psnr_person > 20
        assert f"PSNR {subject.manifest.psnr_person:.1f} dB" in lines[number]

    alone = compose_config([*FIT, *smpl, f"out={tmp_path / 'alone'}", "runtime=inprocess"])
    for capture, name in zip(captures, ("ann", "bo"), strict=True):
        FitCapture(alone, str(capture)).run(lambda _: None)
        here, there = (load_subject(tmp_path / root / name) for root in ("alone", "fits"))
        torch.testing.assert_close(there.field.values, here.field.values, rtol=0, atol=1e-5)
        assert torch.equal(there.lattice.tets, here.lattice.tets)
