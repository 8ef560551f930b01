import torch
from generation_fakes import capsule_people, small_bank

from posegen_ray.body.rotation import about_axis
from posegen_ray.body.skeleton import JOINT
from posegen_ray.generation.plausibility import nearest_pose_distance


def test_real_poses_are_at_zero_whatever_their_heading() -> None:
    real = small_bank().poses.rotations
    turned = real.clone()
    turned[:, 0] = about_axis(1, torch.full((len(real),), 2.0)) @ turned[:, 0]
    body = capsule_people().body
    assert nearest_pose_distance(turned, real, body, torch.zeros(2)).max() < 1.0


def test_distance_grows_with_the_change() -> None:
    real = small_bank().poses.rotations
    body = capsule_people().body
    distances = []
    for angle in (0.1, 0.5, 1.0):
        changed = real.clone()
        turn = about_axis(2, torch.full((len(real),), angle))
        changed[:, JOINT["left_shoulder"]] = turn @ changed[:, JOINT["left_shoulder"]]
        distances.append(nearest_pose_distance(changed, real, body, torch.zeros(2)).mean())
    assert 0 < distances[0] < distances[1] < distances[2]
