import pytest

from posegen_ray.config import RuntimeConfig
from posegen_ray.errors import ResourceError
from posegen_ray.runtime.session import RaySession, worker_environment


def test_resources_are_the_configured_slots(ray_session):
    import ray

    assert ray.cluster_resources()["CPU"] == 6
    assert ray_session.resources().cpus <= 6
    assert ray.util.get_node_ip_address() == "127.0.0.1"  # nothing listens to the network


def test_workers_get_threads_and_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("POSEGEN_CACHE", str(tmp_path))
    monkeypatch.delenv("WARP_CACHE_PATH", raising=False)
    variables = worker_environment(RuntimeConfig(threads=2))
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["POSEGEN_CACHE"] == str(tmp_path)
    assert variables["WARP_CACHE_PATH"].startswith(str(tmp_path))


def test_long_session_folder_is_refused(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = RuntimeConfig(temp_folder="/tmp/" + "x" * 60)
    with pytest.raises(ResourceError, match="too long for unix sockets"), RaySession(config):
        pass
