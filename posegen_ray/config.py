"""Every setting, its type and its default; past this module nobody sees a DictConfig.

YAML under conf/ chooses, these dataclasses decide: a misspelt key or a wrong type fails while the
configuration is composed, and rules between fields are checked in `__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.errors import ConfigError


def require(condition: bool, what: str, fix: str) -> None:
    """Raises ConfigError(what, fix) unless the condition holds."""
    if not condition:
        raise ConfigError(what, fix)


# --- body ---------------------------------------------------------------------------------------


@dataclass
class BodyConfig:
    """The parametric body (conf/body)."""

    name: str = "anny"  # anny | smpl
    smpl_folder: str = ""  # where SMPL_NEUTRAL.pkl (.npz, .safetensors) lies (smpl only)
    gender: str = "neutral"  # neutral | male | female (smpl only)

    def __post_init__(self) -> None:
        require(
            self.name in ("anny", "smpl"),
            f"body.name={self.name!r} is not a body.",
            "Choose body=anny (free, default) or body=smpl.",
        )


# --- motion -------------------------------------------------------------------------------------


@dataclass
class MotionConfig:
    """Motion capture and what each clip is for (conf/motion)."""

    # clips of poses that everybody trains on: first half in time; the second half tests
    source: list[str] = field(
        default_factory=lambda: ["walk", "run", "jump", "dance_a", "punch", "kick", "spin"]
    )
    validation: list[str] = field(default_factory=lambda: ["spinkick", "getup_faceup"])
    # never seen in training
    ood: list[str] = field(
        default_factory=lambda: [
            "cartwheel",
            "backflip",
            "crawl",
            "roll",
            "getup_facedown",
            "dance_b",
        ]
    )
    # own files (AMASS npz, BVH, DeepMimic), named by file; source clips, unless listed above
    paths: list[str] = field(default_factory=list)
    frames_per_second: float = 30.0
    gap_seconds: float = 0.1  # left out between a source clip's halves and at its end

    def __post_init__(self) -> None:
        lists = {"source": self.source, "validation": self.validation, "ood": self.ood}
        owner: dict[str, str] = {}
        for name, clips in lists.items():
            require(bool(clips), f"motion.{name} is empty.", "Name at least one clip.")
            for clip in clips:
                require(
                    clip not in owner,
                    f"Clip {clip!r} is in motion.{name} and in motion.{owner.get(clip)}.",
                    "Use each clip for one purpose only.",
                )
                owner[clip] = name
        require(
            0 < self.frames_per_second <= 240,
            f"motion.frames_per_second={self.frames_per_second} is out of range.",
            "Choose a rate between 0 and 240.",
        )
        require(
            self.gap_seconds >= 0,
            f"motion.gap_seconds={self.gap_seconds} is negative.",
            "Choose 0 or more.",
        )


# --- subjects: capture, field, fit, renderer ----------------------------------------------------


@dataclass
class RegionConfig:
    """The region around the body that a subject's field may fill."""

    shell: float = 0.06  # metres outside the body: wide enough for loose clothes
    inner: float = 0.03  # metres inside the body
    voxel: float = 0.01  # metres, edge of a field cell

    def __post_init__(self) -> None:
        require(
            0.005 <= self.shell <= 0.2 and 0.005 <= self.inner <= 0.2,
            f"fit.region.shell={self.shell}, fit.region.inner={self.inner} must be 0.005 to 0.2 m.",
            "Defaults: 0.06 and 0.03.",
        )
        require(
            0.002 <= self.voxel <= self.shell,
            f"fit.region.voxel={self.voxel} must lie between 0.002 m and the shell's width.",
            "Default: 0.01.",
        )


@dataclass
class RendererConfig:
    """How subjects are drawn (conf/renderer)."""

    kind: str = "fused"  # fused | reference
    layers: int = 6  # entries into the posed lattice kept per ray, at most 6
    early_stop: float = 1e-3  # stop a ray when less light than this is left; 0: never

    def __post_init__(self) -> None:
        require(
            self.kind in ("fused", "reference"),
            f"renderer.kind={self.kind!r} is not a renderer.",
            "Choose fused (fast, default) or reference (readable, far slower).",
        )
        require(
            1 <= self.layers <= 6,
            f"renderer.layers={self.layers} must lie in 1 to 6.",
            "Default: 6; one layer loses what lies behind a limb.",
        )
        require(
            0.0 <= self.early_stop < 0.5,
            f"renderer.early_stop={self.early_stop} must lie in 0 to 0.5.",
            "Default: 0.001.",
        )


@dataclass
class FitConfig:
    """How a subject is fitted to a capture (conf/fit)."""

    region: RegionConfig = field(default_factory=RegionConfig)
    steps: int = 300  # optimiser steps, one training image each
    colour_rate: float = 0.03  # Adam step of colours (0 to 1)
    density_rate: float = 1.0  # Adam step of density logits
    smoothness: float = 2e-3  # weight of the difference between neighbouring cells
    light_rate: float = 0.01  # Adam step of the light; 0: even light from everywhere
    sparsity: float = 1e-5  # push of densities outside the naked body towards empty
    solidity: float = 1e-4  # push of densities inside it towards solid
    prune_at: float = 0.15  # fraction of the steps after which empty cells go
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
        require(self.steps >= 1, f"fit.steps={self.steps} must be positive.", "Default: 300.")
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
            "Default: 0.15; 1 keeps the whole shell.",
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
            self.source != "folder" or bool(self.folder and self.names),
            "subject.source=folder needs subject.folder and subject.names.",
            "For example subject.folder=subjects subject.names=[alice,bob].",
        )
        require(
            self.capture_poses >= 1 and self.capture_views >= 1 and self.capture_size >= 32,
            f"subject.capture_poses={self.capture_poses}, subject.capture_views="
            f"{self.capture_views} or subject.capture_size={self.capture_size} is too small.",
            "The defaults are 20 poses, 4 views and 256 pixels.",
        )


# --- estimator: choice, crop, fine-tuning -------------------------------------------------------


@dataclass
class EstimatorConfig:
    """The pre-trained pose estimator (conf/estimator)."""

    kind: str = "blazepose"
    variant: str = "full"  # lite | full | heavy

    def __post_init__(self) -> None:
        require(
            self.variant in ("lite", "full", "heavy"),
            f"estimator.variant={self.variant!r} is not a BlazePose.",
            "Choose lite (fastest), full (default) or heavy.",
        )


@dataclass
class FineTuneStageConfig:
    """One stage of fine-tuning: what lies before `cut` is frozen, its output is kept."""

    cut: str = "late"  # one of the estimator's cuts
    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-4
    warm_up: int = 20  # steps

    def __post_init__(self) -> None:
        require(
            self.steps >= 0 and self.batch_size >= 1 and self.warm_up >= 0,
            f"fine-tuning stage {self.cut!r}: steps={self.steps}, batch_size={self.batch_size}, "
            f"warm_up={self.warm_up} must not be negative.",
            "steps=0 skips the stage; batch_size must be at least 1.",
        )
        require(
            self.learning_rate > 0,
            f"fine-tuning stage {self.cut!r}: learning_rate={self.learning_rate} must be positive.",
            "The default is 1e-4 for the late and 3e-5 for the early stage.",
        )


@dataclass
class FineTuneConfig:
    """Fine-tuning of the estimator on a fixed set of samples (conf/estimator)."""

    stages: list[FineTuneStageConfig] = field(
        default_factory=lambda: [
            FineTuneStageConfig("late", 400, 32, 1e-4),
            FineTuneStageConfig("early", 250, 16, 3e-5),
        ]
    )
    interpolation: float = 0.7  # 0: the pre-trained weights, 1: the fine-tuned ones (WiSE-FT)
    mirrored: bool = True  # also train on left/right mirrored copies
    augmented_copies: int = 0  # turned, scaled and recoloured copies of each image
    max_feature_mb: int = 1500  # kept features
    online_learning_rate: float = 3e-5  # updates between adversarial rounds
    online_cut: str = "late"

    def __post_init__(self) -> None:
        require(
            0 <= self.interpolation <= 1,
            f"fine-tuning interpolation={self.interpolation} is not between 0 and 1.",
            "0 keeps the pre-trained weights, 1 takes the fine-tuned ones; 0.7 is the default.",
        )
        require(
            self.augmented_copies >= 0 and self.max_feature_mb >= 1,
            "fine-tuning augmented_copies and max_feature_mb must not be negative.",
            "Use augmented_copies=0 for none; max_feature_mb=1500 suits 8 GB of memory.",
        )
        require(
            self.online_learning_rate > 0,
            f"fine-tuning online_learning_rate={self.online_learning_rate} must be positive.",
            "The default is 3e-5.",
        )


# --- generation: generator, discriminator, feedback, validity -----------------------------------


@dataclass
class CameraRangeConfig:
    """Where cameras may stand around the person. Angles in degrees, lengths in metres.

    Elevation is uniform over the sphere between its bounds, all else uniform. `fill` is the height
    of a 1.8 m person at the target's depth as a fraction of the frame; it sets the focal length.
    """

    elevation_low: float = -45.0  # from below: bodies that lie or stand on their head
    elevation_high: float = 80.0
    roll: float = 15.0  # +- this much
    distance_low: float = 2.2
    distance_high: float = 6.0
    fill_low: float = 0.40
    fill_high: float = 0.60
    framing: float = 0.06  # the hip is at most this fraction of the frame off its middle

    def __post_init__(self) -> None:
        require(
            -85 < self.elevation_low <= self.elevation_high < 85,
            f"camera elevation {self.elevation_low} to {self.elevation_high} is not in (-85, 85).",
            "Straight up and down leave the roll undefined; choose smaller angles.",
        )
        require(
            0 < self.distance_low <= self.distance_high and 0 < self.fill_low <= self.fill_high < 1,
            "camera distance and fill must be positive with low <= high, and fill below 1.",
            "Set distance_low and _high in metres, fill_low and _high as shares of the frame.",
        )
        require(
            0 <= self.framing < 0.5 and 0 <= self.roll <= 180,
            f"camera framing={self.framing}, roll={self.roll} is out of range.",
            "framing is a fraction below 0.5; roll is in degrees, 0 to 180.",
        )

    @classmethod
    def eye_level(cls) -> CameraRangeConfig:
        """How people are usually filmed: the source's cameras."""
        return cls(elevation_low=-5.0, elevation_high=20.0, roll=5.0)


@dataclass
class GeneratorConfig:
    """Noise (and, in residual mode, a real pose) -> pose, camera and subject (conf/generator)."""

    mode: str = "residual"  # residual: perturbs real poses; noise: makes them from nothing
    noise: int = 32
    hidden: int = 256
    layers: int = 3
    residual_degrees: float = 45.0  # residual mode: no joint turns by more about any axis
    residual_spread: float = 2.0  # nor by more than so many standard deviations of its real motion
    residual_prior: float = 0.6  # spread of the turns before learning, as a share of that bound
    residual_shift: float = 0.15  # how far learning may move them, as a share of that bound
    recombine: float = 0.75  # residual mode: share of poses with limbs of other real poses
    camera: CameraRangeConfig = field(default_factory=CameraRangeConfig)
    camera_shift: float = 1.5  # how far the camera may move from its prior, in logits
    candidates: int = 64  # of which the one is kept that the critic expects to be paid for; 1: off
    temperature: float = 0.065  # of that choice, in payments; large: at random
    learn_subject: bool = False  # off: every subject equally often

    def __post_init__(self) -> None:
        require(
            self.mode in ("residual", "noise"),
            f"generator.mode={self.mode!r} is not a mode.",
            "Choose residual (perturbs real poses, default) or noise (from noise alone).",
        )
        require(
            self.noise > 0 and self.hidden > 0 and self.layers > 0,
            "generator noise, hidden and layers must be positive.",
            "The defaults are 32, 256 and 3.",
        )
        require(
            0 < self.residual_degrees < 90
            and min(self.residual_spread, self.residual_prior, self.residual_shift) >= 0,
            "generator residual_degrees must lie in (0, 90), residual_spread, _prior and _shift "
            "be >= 0.",
            "The defaults are 45, 2, 0.6 and 0.15.",
        )
        require(
            self.candidates >= 1 and self.temperature > 0,
            f"generator candidates={self.candidates}, temperature={self.temperature} is no good.",
            "Use at least one candidate and a positive temperature.",
        )
        require(
            0 <= self.recombine <= 1 and self.camera_shift >= 0,
            f"generator recombine={self.recombine} or camera_shift={self.camera_shift} is no good.",
            "recombine is a share between 0 and 1; camera_shift is not negative.",
        )


@dataclass
class DiscriminatorConfig:
    """Judges body parts and whole poses."""

    hidden: int = 128
    learning_rate: float = 5e-4
    gradient_penalty: float = 0.1  # R1 on real poses
    history: int = 4096  # earlier fakes that are shown again
    history_share: float = 0.5  # of each batch of fakes

    def __post_init__(self) -> None:
        require(
            self.hidden > 0 and self.history > 0 and self.learning_rate > 0,
            "discriminator hidden, history and learning_rate must be positive.",
            "The defaults are 128, 4096 and 5e-4.",
        )
        require(
            0 <= self.history_share <= 1 and self.gradient_penalty >= 0,
            "discriminator history_share must be in [0, 1] and gradient_penalty not negative.",
            "The defaults are 0.5 and 0.1.",
        )


@dataclass
class FeedbackConfig:
    """What the generator is paid for (conf/feedback).

    It earns the estimator's error inside a band: from `band_low` to `band_high` times the median
    error on real poses seen from the source's cameras. Below it a sample is easy, above it broken
    or ambiguous.
    """

    weight: float = 1.0
    band_low: float = 1.0
    band_high: float = 2.0
    softness: float = 0.25  # of the band's ends, in widths of the band
    overshoot: float = 0.5  # fine above the band, per width of the band
    pay_ambiguous: bool = False  # pay also where a mirrored or depth-swapped label fits better
    through_image: bool = True  # gradient through estimator and renderer
    through_ground_truth: bool = True  # gradient through the ground-truth joints
    realism: float = 1.0  # weight of the discriminator
    critic: float = 1.0  # weight of the payment that the critic expects, beside the rendered one
    critic_batch: int = 64  # proposals that the critic judges, and payments it learns from, a step
    critic_updates: int = 8  # of the critic, a step
    critic_memory: int = 2048  # latest payments that it learns from
    critic_learning_rate: float = 1e-3
    invalid_payment: float = -1.0  # what the critic expects for proposals that are rejected
    diversity: float = 0.5  # weight of mode seeking
    camera_prior: float = 0.02  # weight of the camera's distance from its prior
    camera_entropy: float = 0.1  # weight of the floor on the camera's spread
    camera_entropy_floor: float = 0.5  # share of the prior's spread that is kept free of charge
    joint_limits: float = 10.0  # weight of the soft joint limits
    residual: float = 0.3  # weight of the size of pose residuals
    learning_rate: float = 1e-3
    max_sample_gradient: float = 1.0  # of a rendered payment to a sample's pose or view, per radian
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 < self.band_low < self.band_high,
            f"feedback band [{self.band_low}, {self.band_high}] is empty.",
            "Set 0 < feedback.band_low < feedback.band_high.",
        )
        rewards = (self.weight, self.overshoot, self.realism, self.critic, self.diversity)
        priors = (self.camera_prior, self.camera_entropy, self.joint_limits, self.residual)
        require(
            min(*rewards, *priors) >= 0,
            "feedback weights must not be negative.",
            "Use 0 to switch a term off.",
        )
        require(
            min(self.critic_batch, self.critic_updates, self.critic_memory) >= 1
            and self.critic_learning_rate > 0,
            "feedback critic_batch, critic_updates, critic_memory and _learning_rate must be > 0.",
            "Set feedback.critic=0 and generator.candidates=1 to do without the critic.",
        )
        require(
            self.softness > 0 and self.learning_rate > 0 and self.max_gradient_norm > 0,
            "feedback softness, learning_rate and max_gradient_norm must be positive.",
            "The defaults are 0.25, 1e-3 and 1.",
        )


@dataclass
class ValidityConfig:
    """When a sample is thrown away before it is rendered. Metres and degrees."""

    limit_margin_degrees: float = 10.0  # beyond what the real poses and anatomy allow
    penetration: float = 0.03  # bones may overlap this much more than in the real poses
    frame_margin: float = 0.0  # joints at least this fraction of the frame inside its edge
    visible_joints: int = 7  # of the 12 limb joints not hidden behind other body parts
    camera_clearance: float = 0.3  # between the camera and any bone's surface
    above_ground: bool = False  # training images have no ground; test cameras always stand on one
    camera_height: float = 0.1  # above the ground, where there is one

    def __post_init__(self) -> None:
        require(
            0 <= self.visible_joints <= 12,
            f"validity.visible_joints={self.visible_joints} is not between 0 and 12.",
            "There are 12 limb joints.",
        )
        require(
            0 <= self.frame_margin < 0.5 and self.penetration >= 0 and self.camera_clearance >= 0,
            "validity frame_margin, penetration and camera_clearance must not be negative.",
            "frame_margin is a fraction of the frame below 0.5; the others are metres.",
        )


# --- runtime ------------------------------------------------------------------------------------


@dataclass
class RoleResources:
    """What one process of a role reserves; fractions share a CPU slot or a GPU."""

    num_cpus: float = 0.5
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            value = getattr(self, name)
            require(
                value >= 0 and (value <= 1 or value == int(value)),
                f"runtime: {name}={value} cannot be reserved.",
                "Use 0, a fraction below 1 (shared), or a whole number.",
            )


@dataclass
class RenderServerConfig:
    """The render servers and how their clients talk to them."""

    resources: RoleResources = field(default_factory=lambda: RoleResources(0.5, 0.0))
    replicas: int = 1  # servers that hold the same subjects
    subjects_per_server: int = 1  # 2 or more save memory where there are more subjects than cores
    max_batch: int = 8  # pictures a call; larger requests are split
    max_in_flight: int = 2  # unanswered calls a client allows itself per server (back-pressure)
    deadline_s: float = 300.0  # longest silence of all servers before a request fails
    max_attempts: int = 4  # of one call, before a failing server makes the request fail
    start_timeout_s: float = 300.0  # loading a subject and compiling its kernels

    def __post_init__(self) -> None:
        names = ("replicas", "subjects_per_server", "max_batch", "max_in_flight", "max_attempts")
        for name in names:
            require(
                getattr(self, name) >= 1,
                f"runtime.render.{name}={getattr(self, name)} must be at least 1.",
                f"Set runtime.render.{name} to a positive number.",
            )
        for name in ("deadline_s", "start_timeout_s"):
            require(
                getattr(self, name) > 0,
                f"runtime.render.{name}={getattr(self, name)} must be positive.",
                "Give it in seconds.",
            )


@dataclass
class StreamConfig:
    """The Ray Data stream of generated samples."""

    resources: RoleResources = field(default_factory=lambda: RoleResources(0.25, 0.0))
    actors: int = 1  # processes that draw samples, per train worker
    wait_s: float = 3600.0  # for a version of the generator to be published

    def __post_init__(self) -> None:
        require(
            self.actors >= 1 and self.wait_s > 0,
            f"runtime.stream: actors={self.actors} and wait_s={self.wait_s} must be positive.",
            "Use at least one actor and a waiting time in seconds.",
        )


@dataclass
class RuntimeConfig:
    """Where everything runs (conf/runtime)."""

    name: str = "ray"  # ray | inprocess
    address: str = ""  # of a running cluster; empty: RAY_ADDRESS if set, else a private local one
    num_cpus: int = 6  # logical slots of a private cluster; more than cores is fine, work is shared
    num_gpus: int = 0  # GPUs of a private cluster
    object_store_mb: int = 300
    dashboard: bool = False
    temp_folder: str = ""  # Ray's session folder; keep it short (unix socket paths)
    train_workers: int = 1
    train_resources: RoleResources = field(default_factory=lambda: RoleResources(1.0, 0.0))
    job_workers: int = 2  # processes that fit, draw, fine-tune and predict, one job each at a time
    job_resources: RoleResources = field(default_factory=lambda: RoleResources(0.5, 0.0))
    max_train_failures: int = 3  # train worker deaths survived by resuming from the checkpoint
    threads: int = 1  # numeric threads in every process
    render: RenderServerConfig = field(default_factory=RenderServerConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)

    def __post_init__(self) -> None:
        require(
            self.name in ("ray", "inprocess"),
            f"runtime.name={self.name!r} is not a runtime.",
            "Choose runtime=ray (servers and workers) or runtime=inprocess (one process).",
        )
        for name, least in (
            ("num_cpus", 1),
            ("num_gpus", 0),
            ("train_workers", 1),
            ("job_workers", 1),
            ("max_train_failures", 0),
            ("threads", 1),
        ):
            require(
                getattr(self, name) >= least,
                f"runtime.{name}={getattr(self, name)} is too small.",
                f"Set runtime.{name} to at least {least}.",
            )
        require(
            self.object_store_mb >= 80,
            f"runtime.object_store_mb={self.object_store_mb} is below Ray's minimum.",
            "Set it to at least 80; 300 suits a laptop.",
        )


# --- training, experiment, evaluation -----------------------------------------------------------


@dataclass
class EvaluationConfig:
    """Intervals and the report page (conf/evaluation)."""

    bootstrap: int = 4000  # draws behind each interval
    clusters: int = 8  # pose clusters of the failure atlas
    hardest: int = 8  # samples drawn with skeletons, those the baseline fails on most
    generated: int = 24  # pictures of generated samples

    def __post_init__(self) -> None:
        require(
            self.bootstrap >= 100,
            f"evaluation.bootstrap={self.bootstrap} is too few draws for a 95 % interval.",
            "Set evaluation.bootstrap to 100 or more (4000 takes well under a second).",
        )
        for name in ("clusters", "hardest", "generated"):
            require(
                getattr(self, name) >= 1,
                f"evaluation.{name}={getattr(self, name)} leaves that part of the report empty.",
                f"Set evaluation.{name} to 1 or more.",
            )


@dataclass
class TrainingConfig:
    """Adversarial training (conf/training): rounds of generator steps, then estimator updates."""

    rounds: int = 4
    steps_per_round: int = 30  # adversarial steps; the estimator is frozen during them
    batch_size: int = 8  # proposals a step and worker
    estimator_steps: int = 6  # updates of the live estimator between rounds
    estimator_batch_size: int = 16  # half generated, half source images
    max_skipped_steps: int = 10  # so many non-finite steps in a row stop the run
    log_every: int = 5
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("rounds", "steps_per_round", "batch_size", "estimator_batch_size"):
            require(
                getattr(self, name) >= 1,
                f"training.{name}={getattr(self, name)} must be at least 1.",
                f"Set training.{name} to a positive number.",
            )
        require(
            self.estimator_steps >= 0,
            f"training.estimator_steps={self.estimator_steps} is negative.",
            "Set it to 0 to keep the estimator frozen during training.",
        )
        require(
            self.estimator_batch_size % 2 == 0,
            f"training.estimator_batch_size={self.estimator_batch_size} is odd.",
            "Half of each batch is generated and half is source data: use an even number.",
        )


ARMS = ("baseline", "source_adapted", "random", "posegen")


@dataclass
class ExperimentConfig:
    """A comparison of fine-tuning data (conf/experiment): arms, seeds, budgets."""

    name: str = "demo"
    seeds: list[int] = field(default_factory=lambda: [0])
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    images_per_arm: int = 1200  # half of them are the source images that all arms share
    block_size: int = 24  # samples are drawn in blocks: the unit of work and of seeding
    joint_map_images: int = 240  # source images that the joint map is fitted on
    test_source_images: int = 300
    test_wild_images: int = 300
    test_ood_images: int = 480
    validation_images: int = 96  # watched during training; never a test image

    def __post_init__(self) -> None:
        require(
            len(self.seeds) > 0 and len(set(self.seeds)) == len(self.seeds),
            f"experiment.seeds={list(self.seeds)} must be distinct and not empty.",
            "For example experiment.seeds=[0,1,2].",
        )
        unknown = sorted(set(self.arms) - set(ARMS))
        require(
            not unknown,
            f"experiment.arms has unknown arms {unknown}.",
            f"Choose from {list(ARMS)}.",
        )
        require(
            "baseline" in self.arms,
            "experiment.arms lacks 'baseline', which every other arm is compared with.",
            "Add baseline to experiment.arms.",
        )
        require(
            self.images_per_arm >= 2,
            f"experiment.images_per_arm={self.images_per_arm} has no two halves.",
            "Set experiment.images_per_arm to 2 or more.",
        )
        for name in (
            "block_size",
            "joint_map_images",
            "test_source_images",
            "test_wild_images",
            "test_ood_images",
            "validation_images",
        ):
            require(
                getattr(self, name) >= 1,
                f"experiment.{name}={getattr(self, name)} must be at least 1.",
                f"Set experiment.{name} to a positive number.",
            )


# --- a whole run --------------------------------------------------------------------------------


@dataclass
class RunConfig:
    """Everything that a command can be told (conf/config.yaml)."""

    seed: int = 0  # added to every seed of the experiment
    run_dir: str = "runs/${experiment.name}"
    resume: str = ""  # a run folder to go on with
    run: str = ""  # generate, evaluate, report: the finished run to work on
    capture: str = ""  # fit: the capture folder
    # fit: several side by side, each a capture folder or a person of subject.source
    subjects: list[str] = field(default_factory=list)
    out: str = ""  # convert, fit, generate: where the result goes
    n: int = 100  # generate: how many images
    body: BodyConfig = field(default_factory=BodyConfig)
    motion: MotionConfig = field(default_factory=MotionConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    subject: SubjectsConfig = field(default_factory=SubjectsConfig)
    renderer: RendererConfig = field(default_factory=RendererConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    finetune: FineTuneConfig = field(default_factory=FineTuneConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    validity: ValidityConfig = field(default_factory=ValidityConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    # the last one: from here on `field` is no longer the dataclasses' function
    field: FieldConfig = field(default_factory=FieldConfig)

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n={self.n} must be at least 1.", "Ask for at least one image.")
        require(
            self.subject.source != "makehuman" or self.body.name == "anny",
            f"subject.source=makehuman cannot dress body.name={self.body.name!r}.",
            "MakeHuman's garments fit Anny only: use body=anny.",
        )
        workers = 1 if self.runtime.name == "inprocess" else self.runtime.train_workers
        require(
            self.training.estimator_batch_size % (2 * workers) == 0,
            f"training.estimator_batch_size={self.training.estimator_batch_size} cannot be divided "
            f"into two halves for {workers} train worker(s).",
            f"Use a multiple of {2 * workers}.",
        )
