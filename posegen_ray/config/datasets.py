"""Settings of public test sets (conf/dataset) and of photographs to train on."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require

PUBLIC_SETS = ("3dpw", "mpi_inf_3dhp", "h36m", "surreal")
KEYPOINTS = "keypoints"  # of the user: marked in 2D
JOINT_SETS = ("lsp14", "h36m17", "smpl24", "limbs12")
_SPLITS = {
    "3dpw": ("train", "validation", "test"),
    "mpi_inf_3dhp": ("test",),
    "h36m": ("test",),
    "surreal": ("train", "val", "test"),
}


@dataclass
class DatasetConfig:
    """A public test set and its protocol (conf/dataset, docs/public-test-sets.md)."""

    name: str = ""  # 3dpw | mpi_inf_3dhp | h36m | surreal | keypoints; empty: none
    split: str = "test"
    joints: str = "lsp14"  # what errors are taken over: lsp14 | h36m17 | smpl24 | limbs12
    # a crop's side / the longer side of the person's box; null: the estimator's own (crop.picture)
    crop_scale: float | None = None
    joint_regressor: str = ""  # J_regressor_h36m.npy; empty: that file in body.smpl_folder
    batch_size: int = 32  # pictures held in memory at once
    ground_truth: str = "gendered"  # 3dpw, surreal: gendered | neutral SMPL
    annotation: str = "univ_annot3"  # mpi_inf_3dhp: univ_annot3 | annot3
    inside_only: bool = True  # mpi_inf_3dhp: without frames that have a joint outside the picture
    camera: str = "60457274"  # h36m: the frontal one
    every: int = 1  # h36m, surreal: every so manieth frame
    video_offset: int = 0  # h36m: pose i belongs to the video's frame i + this
    middle_frame: bool = True  # surreal: only that of each sequence's middle clip
    labels: str = ""  # keypoints: SPIN's npz or MPII's json
    head_boxes: str = ""  # keypoints: MPII's gt_valid.mat; empty: heads from neck to top
    clips: str = ""  # surreal: a text file that names the clips instead (BodyNet's namescmu.txt)

    def __post_init__(self) -> None:
        require(
            self.name in ("", *PUBLIC_SETS, KEYPOINTS),
            f"dataset.name={self.name!r} is not a public test set.",
            f"Choose dataset={', '.join((*PUBLIC_SETS, KEYPOINTS))}.",
        )
        splits = _SPLITS.get(self.name, (self.split,))
        require(
            self.split in splits,
            f"dataset.split={self.split!r} is not one of {self.name}.",
            f"Choose {', '.join(splits)}.",
        )
        for name, choices in (
            ("joints", JOINT_SETS),
            ("ground_truth", ("gendered", "neutral")),
            ("annotation", ("univ_annot3", "annot3")),
        ):
            require(
                getattr(self, name) in choices,
                f"dataset.{name}={getattr(self, name)!r} is not known.",
                f"Choose {' or '.join(choices)}.",
            )
        require(
            self.joints != "smpl24" or self.name not in ("mpi_inf_3dhp", "h36m"),
            f"dataset.joints=smpl24 is not annotated in {self.name}.",
            "Choose lsp14, h36m17 or limbs12.",
        )
        require(
            self.joints in ("smpl24", "limbs12") or self.name != "surreal",
            f"dataset.joints={self.joints} is not annotated in surreal.",
            "Choose smpl24 or limbs12.",
        )
        require(
            (self.crop_scale is None or self.crop_scale > 0)
            and self.batch_size >= 1
            and self.every >= 1,
            f"dataset.crop_scale={self.crop_scale}, dataset.batch_size={self.batch_size} and "
            f"dataset.every={self.every} must be positive.",
            "See conf/dataset for the protocols' values.",
        )
        require(
            self.video_offset >= 0,
            f"dataset.video_offset={self.video_offset} is negative.",
            "Choose 0, or 1 for the pictures that SPIN's preprocessing extracts.",
        )


@dataclass
class PhotographsConfig:
    """Photographs among the source images (docs/public-test-sets.md)."""

    # SPIN's npz, MPII's or COCO's json; none: all source images are rendered
    labels: list[str] = field(default_factory=list)
    # of the pictures: one for each file, or one for all
    folders: list[str] = field(default_factory=list)
    share: float = 0.5  # of the source images

    def __post_init__(self) -> None:
        require(
            len(self.folders) in ((1, len(self.labels)) if self.labels else (0,)),
            f"photographs.folders names {len(self.folders)} folders for the {len(self.labels)} "
            "files of photographs.labels.",
            "Name one for each file, or one for all: the folder that its picture names start from.",
        )
        require(
            0 < self.share < 1,
            f"photographs.share={self.share} is not between 0 and 1.",
            "It is the part of the source images that are photographs, such as 0.5; for none leave "
            "photographs.labels empty.",
        )
