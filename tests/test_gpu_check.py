"""`make gpu-check` where there is no GPU: its plans fit, and it does not pretend."""

import gpu_check
import pytest
import torch

from posegen_ray.compose import compose_config
from posegen_ray.runtime.placement import Node, plan

TRAININGS = [check for check in gpu_check.CHECKS if check.overrides]


def test_more_gpus_allow_more_checks():
    assert gpu_check.divide(0) == ([], list(gpu_check.CHECKS))
    one, not_one = gpu_check.divide(1)
    assert len(one) >= 6
    assert {check.gpus for check in not_one} == {2}
    assert gpu_check.divide(2) == (list(gpu_check.CHECKS), [])


@pytest.mark.parametrize("check", TRAININGS, ids=lambda check: check.name)
def test_its_trainings_compose_and_fit_the_gpus_that_they_need(check):
    runtime = compose_config(list(check.overrides)).runtime
    if runtime.name == "inprocess":
        assert runtime.device == "cuda"
        return
    plan(runtime, [Node("here", runtime.num_cpus, check.gpus)], num_subjects=1)
    assert runtime.num_gpus == check.gpus
    assert runtime.train_resources.num_gpus + runtime.render.resources.num_gpus > 0


def test_a_check_that_fails_or_is_too_slow_is_told(monkeypatch, capfd):
    checks = [
        gpu_check.Check("good", ("-c", "pass")),
        gpu_check.Check("bad", ("-c", "raise SystemExit(3)")),
        gpu_check.Check("slow", ("-c", "import time; time.sleep(60)")),
        gpu_check.Check("pair", ("-c", "pass"), gpus=2),
    ]
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    monkeypatch.setattr(gpu_check, "_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(gpu_check, "LIMIT_S", 2.0)
    assert gpu_check.main() == 1
    told = capfd.readouterr().out
    assert [told.count(word) for word in ("passed ", "FAILED ")] == [1, 2]
    assert "needs 2 GPU(s): pair" in told
    monkeypatch.setattr(gpu_check, "CHECKS", checks[:1])
    assert gpu_check.main() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run make gpu-check")
def test_without_a_gpu_it_fails_and_lists_what_was_not_checked(capfd):
    assert gpu_check.main() == 1
    told = capfd.readouterr().out
    assert told.startswith("0 GPU(s): none")
    rest = told.split("NOT checked")[1]
    assert all(check.name in rest for check in gpu_check.CHECKS)
