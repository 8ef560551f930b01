"""Settings of the people: capture, field, fit, renderer (conf/subject, conf/field)."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require


@dataclass
class RegionConfig:
    """The region around the body that a subject's field may fill."""

    # metres outside the body, give or take a cube: wide enough for skirts; masks cut it down
    shell: float = 0.2
    inner: float = 0.03  # metres inside the body
    voxel: float = 0.01  # metres, edge of a field cell

    def __post_init__(self) -> None:
        require(
            0.005 <= self.shell <= 0.4 and 0.005 <= self.inner <= 0.2,
            f"fit.region.shell={self.shell} must be 0.005 to 0.4 m, "
            f"fit.region.inner={self.inner} 0.005 to 0.2 m.",
            "Defaults: 0.2 and 0.03.",
        )
        require(
            0.002 <= self.voxel <= self.shell,
            f"fit.region.voxel={self.voxel} must lie between 0.002 m and the shell's width.",
            "Default: 0.01.",
        )


@dataclass
class RendererConfig:
    """How subjects are drawn."""

    kind: str = "fused"  # fused | reference
    layers: int = 12  # entries into the posed lattice kept per ray, at most 12
    early_stop: float = 1e-3  # stop a ray when less light than this is left; 0: never

    def __post_init__(self) -> None:
        require(
            self.kind in ("fused", "reference"),
            f"renderer.kind={self.kind!r} is not a renderer.",
            "Choose fused (fast, default) or reference (readable, far slower).",
        )
        require(
            1 <= self.layers <= 12,
            f"renderer.layers={self.layers} must lie in 1 to 12.",
            "Default: 12; one layer loses what lies behind a limb.",
        )
        require(
            0.0 <= self.early_stop < 0.5,
            f"renderer.early_stop={self.early_stop} must lie in 0 to 0.5.",
            "Default: 0.001.",
        )


@dataclass
class FitConfig:
    """How a subject is fitted to a capture."""

    region: RegionConfig = field(default_factory=RegionConfig)
    steps: int = 360  # optimiser steps
    pictures: int = 2  # training pictures that a step looks at
    ray_share: float = 1.0  # of a picture's rays; less than all are chosen at random
    colour_rate: float = 0.03  # Adam step of colours (0 to 1)
    density_rate: float = 1.0  # Adam step of density logits
    smoothness: float = 2e-3  # weight of the difference between neighbouring cells
    light_rate: float = 0.01  # Adam step of the light; 0: even light from everywhere
    shine: bool = False  # what shines is learned, too: brightness depends on the view
    sparsity: float = 1e-5  # push of densities outside the naked body towards empty
    solidity: float = 1e-4  # push of densities inside it towards solid
    # fraction of the steps after which empty cells go for the first time; again at 0.4, if later
    prune_at: float = 0.15
    weight_rate: float = 0.12  # Adam step of skinning weights' logits, from then on; 0: the body's
    shift_rate: float = 3e-3  # Adam step of where cloth and hair hang, metres; 0: no shifts
    turn_rate: float = 0.02  # Adam step of where they look, for the light; 0: as the body does
    refine_rate: float = 0.0  # Adam step of poses and cameras, rad and m (2e-3); 0: as given
    patience: int = 0  # steps without a gain of min_gain after which the fit ends; 0: never early
    min_gain: float = 0.05  # dB of PSNR on the training pictures
    preview_every: int = 100  # steps between pictures of a held-out frame (posegen fit); 0: none
    keep_every: int = 100  # steps between kept states, to go on from (posegen fit); 0: none
    lpips: bool = False  # measure LPIPS, too (needs posegen-ray[lpips])

    def __post_init__(self) -> None:
        require(
            0 <= self.refine_rate < 0.1,
            f"fit.refine_rate={self.refine_rate} must lie in [0, 0.1).",
            "0 takes poses and cameras as given; 2e-3 suits poses that are off by some degrees.",
        )
        require(
            min(self.patience, self.preview_every, self.keep_every) >= 0 and self.min_gain >= 0,
            "fit.patience, fit.min_gain, fit.preview_every and fit.keep_every must not be "
            "negative.",
            "0 turns each of them off.",
        )
        require(
            0 <= self.weight_rate <= 1 and 0 <= self.shift_rate <= 0.1 and 0 <= self.turn_rate <= 1,
            f"fit.weight_rate={self.weight_rate} and fit.turn_rate={self.turn_rate} must lie in "
            f"[0, 1], fit.shift_rate={self.shift_rate} in [0, 0.1].",
            "Defaults: 0.12, 0.02 and 3e-3; 0 lets everything move as the body's skinning says.",
        )
        require(
            self.steps >= 1 and self.pictures >= 1,
            f"fit.steps={self.steps} and fit.pictures={self.pictures} must be positive.",
            "Defaults: 360 and 2.",
        )
        require(
            0 < self.ray_share <= 1,
            f"fit.ray_share={self.ray_share} must lie in (0, 1].",
            "Default: 1, all of them.",
        )
        require(
            min(self.colour_rate, self.density_rate) > 0
            and min(self.light_rate, self.smoothness, self.sparsity, self.solidity) >= 0,
            "fit.colour_rate and fit.density_rate must be positive, fit.light_rate, "
            "fit.smoothness, fit.sparsity and fit.solidity not negative.",
            "Defaults: 0.03, 1.0, 0.01, 2e-3, 1e-5, 1e-4.",
        )
        require(
            0.0 < self.prune_at <= 1.0,
            f"fit.prune_at={self.prune_at} must lie in (0, 1].",
            "Default: 0.15; 1 keeps the whole shell to the end, and learns no motion.",
        )


@dataclass
class AnerfConfig:
    """A-NeRF's network, samples and training (conf/field/anerf.yaml); its published settings."""

    depth: int = 8  # layers
    width: int = 256  # features a layer
    samples: int = 64  # a ray, evenly
    importance: int = 16  # a ray, where the first look found something
    steps: int = 150_000
    pictures: int = 4  # a step
    rays: int = 512  # a picture and step
    learning_rate: float = 5e-4
    half_life: int = 150_000  # steps after which the learning rate is halved

    def __post_init__(self) -> None:
        counts = (self.depth, self.width // 2, self.samples, self.steps, self.pictures, self.rays)
        require(
            min(counts) >= 1 and self.importance >= 0 and self.half_life >= 1,
            "field.anerf: depth, width (2), samples, steps, pictures, rays and half_life must be "
            "positive, importance not negative.",
            "Defaults: 8, 256, 64, 150000, 4, 512, 150000 and 16.",
        )
        require(
            self.learning_rate > 0, "field.anerf.learning_rate must be positive.", "Default: 5e-4."
        )


@dataclass
class FieldConfig:
    """What holds a person's looks (conf/field)."""

    kind: str = "voxels"  # voxels (fit.*) | anerf
    anerf: AnerfConfig = field(default_factory=AnerfConfig)

    def __post_init__(self) -> None:
        require(
            self.kind in ("voxels", "anerf"),
            f"field.kind={self.kind!r} is not a field.",
            "Choose voxels (fast, default) or anerf (A-NeRF's network, thousands of times slower).",
        )


CAPTURE_FORMATS = ("zju_mocap", "people_snapshot", "surreal", "frames")


@dataclass
class ConvertConfig:
    """What `posegen convert` makes a capture from (docs/captures.md)."""

    format: str = ""  # zju_mocap | people_snapshot | surreal | frames
    source: str = ""  # the data set's folder of one person; surreal: the clip's _info.mat
    name: str = ""  # of the person; empty: the source's
    licence: str = ""  # frames: whose pictures they are, and what may be done with them
    views: list[int] = field(default_factory=list)  # zju_mocap: which cameras; empty: all
    start: int = 0  # the first moment
    stride: int = 0  # every so manieth moment; 0: as many as max_frames allows, evenly spread
    max_frames: int = 200  # pictures at most (moments times views); all are held in memory
    held_out: float = 0.1  # share of the moments that PSNR is measured on

    def __post_init__(self) -> None:
        require(
            self.format in ("", *CAPTURE_FORMATS),
            f"convert.format={self.format!r} is not known.",
            f"Choose one of {', '.join(CAPTURE_FORMATS)}.",
        )
        require(
            self.start >= 0 and self.stride >= 0 and self.max_frames >= 1,
            f"convert.start={self.start}, convert.stride={self.stride} or "
            f"convert.max_frames={self.max_frames} is out of range.",
            "Defaults: 0, 0 (spread evenly) and 200.",
        )
        require(
            0 <= self.held_out < 1,
            f"convert.held_out={self.held_out} must lie in [0, 1).",
            "Default: 0.1.",
        )


@dataclass
class SubjectsConfig:
    """The people whose NeRFs render training images (conf/subject)."""

    # wardrobe: the synthetic people that come with the package, fitted when missing;
    # makehuman: people in MakeHuman's garments (fetched, mixed licences), fitted when missing;
    # folder: subjects that `posegen fit` made, by name
    source: str = "wardrobe"
    names: list[str] = field(default_factory=list)  # empty: all of the source's training people
    folder: str = ""  # where subject folders lie; empty: in the cache
    capture_poses: int = 20  # motion frames that a synthetic person is filmed in
    capture_views: int = 4  # cameras a pose
    capture_size: int = 256  # pixels

    def __post_init__(self) -> None:
        require(
            self.source in ("wardrobe", "makehuman", "folder"),
            f"subject.source={self.source!r} is not known.",
            "Choose wardrobe (synthetic people), makehuman (people in MakeHuman's garments) or "
            "folder (your own subjects).",
        )
        require(
            self.source != "folder" or bool(self.names),
            "subject.source=folder needs subject.names.",
            "For example subject.names=[alice,bob]; subject.folder=FOLDER where they do not lie in "
            "the cache.",
        )
        require(
            self.capture_poses >= 1 and self.capture_views >= 1 and self.capture_size >= 32,
            f"subject.capture_poses={self.capture_poses}, subject.capture_views="
            f"{self.capture_views} or subject.capture_size={self.capture_size} is too small.",
            "The defaults are 20 poses, 4 views and 256 pixels.",
        )
