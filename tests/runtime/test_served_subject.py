import os
import signal

import ray
import torch
from runtime_fakes import posed_request, with_gradients

from posegen_ray.config import RendererConfig, RenderServerConfig, RoleResources
from posegen_ray.runtime.render_pool import start_pool
from posegen_ray.subjects.render import make_renderer
from posegen_ray.subjects.store import save_subject


def test_served_subject_is_the_local_one_though_its_server_is_killed(
    ray_session, tmp_path, body, capsule_subject
):
    save_subject(capsule_subject, tmp_path / "person")
    name, settings = capsule_subject.name, RendererConfig()
    local = make_renderer(settings, {name: capsule_subject})
    config = RenderServerConfig(resources=RoleResources(0.5), max_batch=2)
    pool = start_pool(config, {name: tmp_path / "person"}, settings, "person")
    try:
        request = posed_request(body, (capsule_subject.name,) * 5, 48)
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
        # torch's compiler, which roma imports: seconds and 150 MB that a server does without; and
        # scipy, which making a lattice needs: 30 MB
        (server,) = pool._teams[0].servers.values()
        modules = ray.get(server.__ray_call__.remote(lambda _: set(__import__("sys").modules)))
        assert not {"roma", "torch._dynamo", "scipy"} & modules
        (health,) = pool.health()
        print(f"server: {health.memory_mb:.0f} MB, loaded in {health.load_s:.1f} s")
    finally:
        pool.close()
