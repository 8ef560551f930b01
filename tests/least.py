"""Settings of the smallest run that shows every part; read by a cluster's processes, too."""

LEAST = [
    "experiment=tiny",
    "experiment.images_per_arm=8",
    *(f"experiment.{name}=4" for name in ("joint_map_images", "validation_images")),
    *(f"experiment.test_{name}_images=4" for name in ("source", "wild", "ood")),
    *("training.rounds=1", "training.steps_per_round=1"),
    *("training.batch_size=2", "training.estimator_batch_size=2"),
]
