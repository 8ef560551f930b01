import os
import signal

import torch
from runtime_fakes import with_gradients

from posegen_ray.body.camera import orbit
from posegen_ray.body.rotation import from_axis_angle
from posegen_ray.config import RendererConfig, RenderServerConfig, RoleResources
from posegen_ray.records import RenderRequest
from posegen_ray.runtime.render_pool import start_pool
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import save_subject


def posed_request(body, subject, count, size=48):
    stream = torch.Generator().manual_seed(4)
    rotations = from_axis_angle(0.2 * torch.randn(count, 24, 3, generator=stream))
    posed = body(rotations, subject.shape.expand(count, -1), torch.zeros(count, 3))
    angle = torch.linspace(-1, 1, count)
    camera = orbit(
        posed.joints[:, 0],
        azimuth=angle,
        elevation=0.2 * angle,
        roll=0.1 * angle,
        distance=torch.full((count,), 4.0),
        focal=torch.full((count,), 1.6 * size),
        principal=torch.full((count, 2), size / 2),
        height=size,
        width=size,
    )
    return RenderRequest((subject.name,) * count, posed.bones.detach(), camera)


def test_served_subject_is_the_local_one_though_its_server_is_killed(
    ray_session, tmp_path, body, capsule_subject
):
    save_subject(capsule_subject, tmp_path / "person")
    name, settings = capsule_subject.name, RendererConfig()
    local = make_renderer(settings, {name: capsule_subject})
    config = RenderServerConfig(resources=RoleResources(0.5), max_batch=2)
    pool = start_pool(config, {name: tmp_path / "person"}, settings, "person")
    try:
        request = posed_request(body, capsule_subject, 5)
        results = []
        for render in (local, pool.render_fn()):
            again, leaves = with_gradients(request)
            image = render(again).rgba
            if render is not local:  # the server dies between a picture and its gradient
                os.kill(pool.health()[0].load.process_id, signal.SIGKILL)
            weight = torch.linspace(-1, 1, image.numel()).reshape(image.shape)
            results.append((image.detach(), torch.autograd.grad((image * weight).sum(), leaves)))
        (local_image, local_slopes), (served_image, served_slopes) = results
        assert local_image[..., 3].max() > 0.5
        torch.testing.assert_close(served_image, local_image, rtol=0, atol=0)
        for served, wanted in zip(served_slopes, local_slopes, strict=True):
            assert wanted.abs().max() > 0
            torch.testing.assert_close(
                served, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max())
            )
        (health,) = pool.health()
        print(f"server: {health.memory_mb:.0f} MB, loaded in {health.load_s:.1f} s")
    finally:
        pool.close()
