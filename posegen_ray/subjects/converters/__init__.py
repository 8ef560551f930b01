"""Captures from data sets: one module a format, each `(settings, body) -> Capture`.

A module only reads its files; what all formats share (checks, lens distortion, the world's up axis,
held-out frames) is in `assembly`.
"""

from __future__ import annotations

from collections.abc import Callable

from posegen_ray.config import BodyConfig, ConvertConfig
from posegen_ray.errors import ConfigError
from posegen_ray.subjects.capture import Capture
from posegen_ray.subjects.converters.frames import convert_frames
from posegen_ray.subjects.converters.people_snapshot import convert_people_snapshot
from posegen_ray.subjects.converters.surreal import convert_surreal
from posegen_ray.subjects.converters.zju_mocap import convert_zju_mocap

# by the names of posegen_ray.config.CAPTURE_FORMATS
CONVERTERS: dict[str, Callable[[ConvertConfig, BodyConfig], tuple[Capture, BodyConfig]]] = {
    "zju_mocap": convert_zju_mocap,
    "people_snapshot": convert_people_snapshot,
    "surreal": convert_surreal,
    "frames": convert_frames,
}


def convert(
    settings: ConvertConfig, body: BodyConfig
) -> tuple[Capture, BodyConfig]:  # the capture, and the body that it is of
    """The capture that the settings describe.

    The body that comes back is the given one, with the gender that the data set states.

    Raises:
        ConfigError: no format or no source is named, or the format has no such view.
        DataError: the source is incomplete, damaged or contradicts itself; the message names the
            file and the frame.
        AssetError: SMPL's licensed file, or a package that reads the format, is missing.
    """
    if not settings.format or not settings.source:
        raise ConfigError(
            "No data set is named.",
            "Add convert.format=<format> convert.source=<folder>; see docs/captures.md.",
        )
    return CONVERTERS[settings.format](settings, body)
