"""Where the archives of the benchmarks lie, and the digests that prove them.

Addresses and digests are from public code, named in ``data/README.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from objemb_lib.data.archives import Archive, DistillConfig
from objemb_lib.data.classes import cars, cub, sop
from objemb_lib.data.coco import TOTAL, YEARS, coco_photographs
from objemb_lib.data.dataset import ImageDataset
from objemb_lib.data.landmarks import TOTAL as LANDMARKS
from objemb_lib.data.landmarks import drop_unlisted, read_truth, roxford5k, rparis6k

CALTECH = "https://data.caltech.edu/records"
CARS_COPY = (
    "https://huggingface.co/datasets/XiN0919/FGVC/resolve/921e8dce38536cd5982739d85d5e9235d2cb2a76"
)
SOP_DRIVE = (
    "https://drive.usercontent.google.com/download"
    "?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&authuser=0&confirm=t"
)
COCO = "http://images.cocodataset.org"
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
THOR = "https://thor.robots.ox.ac.uk"
REVISITED = "cmp.felk.cvut.cz/revisitop/data/datasets"


def _count(load: Callable[..., ImageDataset], split: str, root: Path) -> int:
    return len(load(split, root))


CUB = DistillConfig(
    "cub",
    (
        (
            Archive(
                "CUB_200_2011.tgz",
                (f"{CALTECH}/65de6-vp158/files/CUB_200_2011.tgz",),
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                1_150_585_339,
                members=lambda name: name.startswith("CUB_200_2011/"),
            ),
            Archive(
                "segmentations.tgz",
                (f"{CALTECH}/w9d68-gec53/files/segmentations.tgz",),
                "dc77f6cffea0cbe2e41d4201115c8f29a6320ecb04fffd2444f51b8066e4b84f",
                39_272_883,
                into="CUB_200_2011",
            ),
        ),
    ),
    partial(_count, cub),
    {"train": 5_864, "test": 5_924},
)
CARS = DistillConfig(
    "cars",
    (
        (
            Archive(
                "car_ims.tgz",
                (f"{CARS_COPY}/car_ims.tgz",),
                "md5:d5c8f0aa497503f355e17dc7886c3f14",
                1_956_628_579,
            ),
            Archive(
                "cars_annos.mat",
                (f"{CARS_COPY}/cars_annos.mat",),
                "md5:b407c6086d669747186bd1d764ff9dbc",
            ),
        ),
        (
            Archive(
                "cars_train.tgz",
                digest="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                size=979_269_282,
            ),
            Archive(
                "cars_test.tgz",
                digest="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                size=977_350_468,
            ),
            Archive(
                "car_devkit.tgz",
                digest="b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                size=330_960,
            ),
            Archive(
                "cars_test_annos_withlabels.mat",
                digest="790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                size=185_758,
            ),
        ),
    ),
    partial(_count, cars),
    {"train": 8_054, "test": 8_131},
    gone="Stanford's servers for it are gone. Find car_ims.tgz and cars_annos.mat (or "
    "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat), put them "
    "into one folder, and build with --source FOLDER: any copy will do, since each is checked "
    "against its published digest. Already unpacked? No build is needed: use cars:FOLDER.",
)
SOP = DistillConfig(
    "sop",
    (
        (
            Archive(
                "Stanford_Online_Products.zip",
                ("http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip", SOP_DRIVE),
                "b04fa78210e69fab050ce73939550e1cd0f96890bdd98ec9fee732c3b756ef48",
                3_083_860_082,
                members=lambda name: (
                    name.startswith("Stanford_Online_Products/") and "/._" not in name
                ),
            ),
        ),
    ),
    partial(_count, sop),
    {"train": 59_551, "test": 60_502},
)
COCO_2017 = DistillConfig(
    "coco",
    (
        (
            Archive(
                "annotations_trainval2017.zip",
                (f"{COCO}/annotations/annotations_trainval2017.zip",),
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                252_907_541,
                members=lambda name: name.startswith("annotations/instances_"),
            ),
            Archive(
                "val2017.zip",
                (f"{COCO}/zips/val2017.zip",),
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                815_585_330,
            ),
            Archive(
                "train2017.zip",
                (f"{COCO}/zips/train2017.zip",),
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                19_336_861_798,
            ),
        ),
    ),
    lambda split, root: len(coco_photographs(split, root, with_masks=False)),
    {split: TOTAL[year] for split, year in YEARS.items()},
)


def _truth(name: str) -> Archive:
    file = f"gnd_{name}.pkl"
    urls = tuple(f"{scheme}://{REVISITED}/{name}/{file}" for scheme in ("https", "http"))
    return Archive(file, urls, check=read_truth)


def _jpg(name: str) -> bool:
    return name.endswith(".jpg") and "/._" not in name


OXFORD = DistillConfig(
    "roxford5k",
    (
        (
            _truth("roxford5k"),
            Archive(
                "oxbuild_images-v1.tgz",
                (
                    f"{VGG}/oxbuildings/oxbuild_images-v1.tgz",
                    f"{THOR}/oxbuildings/oxbuild_images-v1.tgz",
                ),
                size=1_938_238_004,
                into="jpg",
                flat=True,
                members=_jpg,
            ),
        ),
    ),
    partial(_count, roxford5k),
    {"medium": sum(LANDMARKS["roxford5k"])},
    tidy=partial(drop_unlisted, "roxford5k"),
)
PARIS = DistillConfig(
    "rparis6k",
    (
        (
            _truth("rparis6k"),
            *(
                Archive(
                    f"paris_{part}-v1.tgz",
                    (
                        f"{VGG}/parisbuildings/paris_{part}-v1.tgz",
                        f"{THOR}/datasets/paris-buildings/paris_{part}-v1.tgz",
                    ),
                    into="jpg",
                    flat=True,
                    members=_jpg,
                )
                for part in (1, 2)
            ),
        ),
    ),
    partial(_count, rparis6k),
    {"medium": sum(LANDMARKS["rparis6k"])},
    tidy=partial(drop_unlisted, "rparis6k"),
)
