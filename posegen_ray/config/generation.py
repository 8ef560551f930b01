"""Settings of what proposes poses and cameras, and of what it is paid for."""

from __future__ import annotations

from dataclasses import dataclass, field

from posegen_ray.config.rules import require

ANYHOW = -1.0  # validity.support: nobody is asked to stand


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
class ConditionConfig:
    """What is asked for of all that can be proposed, by PoseGen and by the random arms alike.

    A generator sees the pose and the view that it starts from, so one that was trained on
    everything can be asked for a part: `posegen generate generator.condition.clips=[walk*]`.
    """

    # source clips that base poses come from, * stands for anything; []: all
    clips: list[str] = field(default_factory=list)
    # degrees from where the body faces; 90: its left side, 135 to 225: its back
    azimuth_low: float = -180.0
    azimuth_high: float = 180.0
    elevation_low: float = -90.0  # degrees, inside generator.camera's range
    elevation_high: float = 90.0

    def __post_init__(self) -> None:
        require(
            -180 <= self.azimuth_low < 180
            and self.azimuth_low < self.azimuth_high <= self.azimuth_low + 360
            and -90 <= self.elevation_low < self.elevation_high <= 90,
            f"generator.condition asks for azimuths {self.azimuth_low} to {self.azimuth_high} and "
            f"elevations {self.elevation_low} to {self.elevation_high}, which is no range.",
            "Set low < high: azimuths from -180 on (135 to 225: the back), elevations within +-90.",
        )


@dataclass
class LightRangeConfig:
    """How training images may be lit, other than their subject was filmed. Fields of kind anerf
    hold their light fast: only exposure and background may vary (conf/field/anerf.yaml)."""

    turn: float = 180.0  # degrees: the light turns about the up axis by up to +- this much
    contrast_low: float = 0.4  # of light and shade on the person; 1: as filmed, 0: none
    contrast_high: float = 1.5
    exposure_low: float = 0.75  # factor of the person's brightness
    exposure_high: float = 1.2
    background_low: float = 0.7  # factor of the background's brightness
    background_high: float = 1.3

    def __post_init__(self) -> None:
        require(
            0 <= self.turn <= 180 and 0 <= self.contrast_low <= self.contrast_high,
            f"generator.light turn={self.turn}, contrast {self.contrast_low} to "
            f"{self.contrast_high} is out of range.",
            "turn is in degrees, 0 to 180; contrast is not negative, with low <= high.",
        )
        require(
            0 < self.exposure_low <= self.exposure_high
            and 0 < self.background_low <= self.background_high,
            "generator.light exposure and background must be positive with low <= high.",
            "They are factors: 1 leaves the brightness as it is.",
        )

    @property
    def holds(self) -> bool:
        """Whether light stays as it was filmed, but for its brightness."""
        return (self.turn, self.contrast_low, self.contrast_high) == (0, 1, 1)


LEARNABLE = ("pose", "camera", "light")


@dataclass
class GeneratorConfig:
    """Noise (and, in residual mode, a real pose) -> pose, camera, light and subject."""

    mode: str = "residual"  # residual: perturbs real poses; noise: makes them from nothing
    noise: int = 32
    hidden: int = 256
    layers: int = 3
    residual_degrees: float = 45.0  # residual mode: no joint turns by more about any axis
    residual_spread: float = 2.0  # nor by more than so many standard deviations of its real motion
    residual_prior: float = 0.6  # spread of the turns before learning, as a share of that bound
    residual_shift: float = 0.15  # how far learning may move them, as a share of that bound
    recombine: float = 0.75  # residual mode: share of poses with limbs of other real poses
    tumble: float = 0.3  # share of poses whose whole body turns about a level axis, by up to 180
    # pose, camera, light: what is not named stays as its prior draws it
    learns: list[str] = field(default_factory=lambda: list(LEARNABLE))
    camera: CameraRangeConfig = field(default_factory=CameraRangeConfig)
    light: LightRangeConfig = field(default_factory=LightRangeConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    camera_shift: float = 1.5  # how far camera and light may move from their prior, in logits
    candidates: int = 64  # of which the one is kept that the critic expects to be paid for; 1: off
    temperature: float = 0.065  # of that choice, in payments; large: at random
    learn_subject: bool = False  # off: every subject equally often
    share: float = 0.5  # of an arm's own images; the others are drawn at random

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
            0 < self.share <= 1,
            f"generator.share={self.share} is not in (0, 1].",
            "1 takes all of PoseGen's own images from the generator, 0.5 every other one.",
        )
        require(
            self.condition.elevation_low < self.camera.elevation_high
            and self.condition.elevation_high > self.camera.elevation_low,
            f"generator.condition asks for elevations {self.condition.elevation_low} to "
            f"{self.condition.elevation_high}, but no camera of generator.camera stands there.",
            f"It has {self.camera.elevation_low} to {self.camera.elevation_high} degrees.",
        )
        require(
            self.candidates >= 1 and self.temperature > 0,
            f"generator candidates={self.candidates}, temperature={self.temperature} is no good.",
            "Use at least one candidate and a positive temperature.",
        )
        require(
            bool(self.learns) and set(self.learns) <= set(LEARNABLE),
            f"generator.learns=[{','.join(self.learns)}] is nothing to learn.",
            f"Choose one or more of {', '.join(LEARNABLE)}.",
        )
        require(
            0 <= self.recombine <= 1 and 0 <= self.tumble <= 1 and self.camera_shift >= 0,
            f"generator recombine={self.recombine}, tumble={self.tumble} or "
            f"camera_shift={self.camera_shift} is no good.",
            "recombine and tumble are shares between 0 and 1; camera_shift is not negative.",
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
    """What the generator is paid for.

    It earns the estimator's error inside a band: from `band_low` to `band_high` times the median
    error on real poses seen from the source's cameras, or on what the untrained generator proposes.
    Below it a sample is easy, above it broken or ambiguous.
    """

    weight: float = 1.0
    band_of: str = "prior"  # source | prior: whose median error the band is stated in
    band_low: float = 1.0
    band_high: float = 2.0
    softness: float = 0.25  # of the band's ends, in widths of the band
    # over this share of the training the band's ends rise from half of their place: easy first
    curriculum: float = 0.0
    # weights of limb joints in the error that is paid, e.g. {left_wrist: 3}; others weigh 1
    joint_weights: dict[str, float] = field(default_factory=dict)
    overshoot: float = 0.5  # fine above the band, per width of the band
    # share of what a reference estimator's error would be paid that is held back: what even an
    # estimator trained on broad data gets wrong is hard for other reasons (Mindermann et al. 2022)
    reducible: float = 0.0
    pay_ambiguous: bool = False  # pay also where a mirrored or depth-swapped label fits better
    # how payments reach the generator. image: their gradient; score: a score function, which needs
    # only the estimator's answers; auto: image where the estimator is differentiable
    estimator_gradient: str = "auto"
    score_noise: float = 0.3  # score: spread of what is tried, in the generator's own units
    through_image: bool = True  # image: gradient through estimator and renderer
    through_ground_truth: bool = True  # image: gradient through the ground-truth joints
    realism: float = 1.0  # weight of the discriminator
    critic: float = 1.0  # weight of the payment that the critic expects, beside the rendered one
    critic_batch: int = 64  # proposals that the critic judges, and payments it learns from, a step
    critic_updates: int = 8  # of the critic, a step
    critic_memory: int = 2048  # latest payments that it learns from
    critic_learning_rate: float = 1e-3
    invalid_payment: float = -1.0  # what the critic expects for proposals that are rejected
    diversity: float = 0.5  # weight of mode seeking
    view_prior: float = 0.02  # weight of how far camera and light are moved from chance
    view_entropy: float = 0.1  # weight of the floor on camera's and light's spread
    view_entropy_floor: float = 0.5  # share of the prior's spread that is kept free of charge
    joint_limits: float = 10.0  # weight of the soft joint limits
    residual: float = 0.3  # weight of the size of pose residuals
    learning_rate: float = 1e-3
    max_sample_gradient: float = 1.0  # of a rendered payment to a sample's pose, view or light
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        require(
            0 < self.band_low < self.band_high,
            f"feedback band [{self.band_low}, {self.band_high}] is empty.",
            "Set 0 < feedback.band_low < feedback.band_high.",
        )
        require(
            0 <= self.curriculum <= 1,
            f"feedback.curriculum={self.curriculum} is not between 0 and 1.",
            "It is a share of the training; 0 keeps the band where it is.",
        )
        require(
            min(self.joint_weights.values(), default=0.0) >= 0,
            f"feedback.joint_weights={dict(self.joint_weights)} are negative.",
            "Use 0 for joints that do not count.",
        )
        require(
            self.band_of in ("source", "prior"),
            f"feedback.band_of={self.band_of!r} is unknown.",
            "Choose source or prior.",
        )
        require(
            self.estimator_gradient in ("auto", "image", "score") and self.score_noise > 0,
            f"feedback estimator_gradient={self.estimator_gradient!r}, "
            f"score_noise={self.score_noise} is no good.",
            "Choose auto, image or score, and a positive noise (0.3 is the default).",
        )
        require(
            0 <= self.reducible <= 1,
            f"feedback.reducible={self.reducible} is not between 0 and 1.",
            "0 pays for error, 1 for what the reference estimator does better.",
        )
        rewards = (self.weight, self.overshoot, self.realism, self.critic, self.diversity)
        priors = (self.view_prior, self.view_entropy, self.joint_limits, self.residual)
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
    """When a sample is thrown away, most of the time before it is rendered. Metres and degrees."""

    limit_margin_degrees: float = 10.0  # beyond the real poses; what anatomy allows is allowed
    penetration: float = 0.03  # bones may overlap this much more than in the real poses
    # the centre of mass may lie this much further beside what touches the ground than in 95 % of
    # the real poses; -1: anywhere, as where bodies tumble
    support: float = ANYHOW
    frame_margin: float = 0.0  # joints at least this fraction of the frame inside its edge
    visible_joints: int = 7  # of the 12 limb joints not hidden behind other body parts
    camera_clearance: float = 0.3  # between the camera and any bone's surface
    present_joints: int = 8  # of the 12 limb joints drawn: the rendered person covers their pixel
    # of an arm's own images those are dropped whose label, mirrored or with left and right swapped,
    # fits the starting estimator's answer better: it learns noise from them
    unambiguous: bool = False
    above_ground: bool = False  # training images have no ground; test cameras always stand on one
    camera_height: float = 0.1  # above the ground, where there is one

    def __post_init__(self) -> None:
        require(
            0 <= self.visible_joints <= 12 and 0 <= self.present_joints <= 12,
            f"validity.visible_joints={self.visible_joints}, present_joints={self.present_joints} "
            "are not between 0 and 12.",
            "There are 12 limb joints.",
        )
        require(
            0 <= self.frame_margin < 0.5
            and min(self.penetration, self.camera_clearance) >= 0
            and (self.support >= 0 or self.support == ANYHOW),
            "validity frame_margin, penetration, camera_clearance, support must not be negative.",
            "frame_margin is a fraction of the frame below 0.5; the others are metres.",
        )
