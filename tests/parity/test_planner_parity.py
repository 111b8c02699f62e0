"""Fingerprints and plans are those of nnU-Net: on real images, and for made-up collections of every kind."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicomnode.ml.planning import fingerprint, nnunet_planner
from dicomnode.ml.planning.fingerprint import Fingerprint
from dicomnode.ml.planning.planned import Aim, PlannedTraining
from dicomnode.ml.training import dataset

HERE = Path(__file__).resolve().parent
ALL = ("plain:", "M:", "L:", "XL:")
INTENSITIES = {
    "0": {
        "max": 1500.0,
        "mean": 80.5,
        "median": 90.25,
        "min": -300.0,
        "percentile_00_5": -120.0,
        "percentile_99_5": 310.0,
        "std": 60.75,
    }
}
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A data set for both planners."""

    labels: Mapping[str, int | list[int]]
    channel: str = "MRI"
    made: Values | None = None  # fingerprint; None: there are images
    region_classes: tuple[int, ...] = ()
    planners: tuple[str, ...] = ALL

    @property
    def aim(self) -> Aim:
        values = {
            v for value in self.labels.values() for v in (value if isinstance(value, list) else [value])
        }
        return Aim(
            name="x",
            classes=len(values) - ("ignore" in self.labels),
            region_classes=self.region_classes,
            has_unknown="ignore" in self.labels,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("CT",) if self.channel == "CT" else ("MR",)


def classes(count: int) -> dict[str, int | list[int]]:
    return {"background": 0, **{f"label {index}": index for index in range(1, count)}}


def alike(shapes: list[list[int]], spacings: list[list[float]], *, kept: float = 1.0) -> Values:
    return {
        "foreground_intensity_properties_per_channel": INTENSITIES,
        "median_relative_size_after_cropping": kept,
        "shapes_after_crop": shapes,
        "spacings": spacings,
    }


def random_collection(seed: int) -> Values:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 40))
    size = np.exp(generator.uniform(np.log(20), np.log(500), 3))
    spacing = np.exp(generator.uniform(np.log(0.3), np.log(6), 3))
    spacing[generator.integers(3)] *= generator.choice([1.0, 1.0, 4.0])
    shapes = np.maximum(size * generator.uniform(0.7, 1.3, (count, 3)), 12).astype(int)
    spacings = np.round(spacing * generator.uniform(0.8, 1.25, (count, 3)), 4)
    return alike(shapes.tolist(), spacings.tolist(), kept=float(generator.choice([0.5, 0.9])))


def made_jobs() -> Mapping[str, Job]:
    prostate = alike(
        [[20, 320, 300], [24, 320, 320], [15, 384, 384], [22, 256, 256]],
        [[3.6, 0.62, 0.62], [3.0, 0.6, 0.6], [4.0, 0.52, 0.52], [2.2, 0.7, 0.7]],
    )
    last_axis = alike([[256, 256, 12], [300, 280, 14]] * 3, [[0.8, 0.8, 7.0], [0.7, 0.75, 6.0]] * 3)
    ct = alike(
        [[300, 512, 512], [420, 512, 512], [250, 400, 512]],
        [[1.0, 0.8, 0.8], [0.7, 0.7, 0.7], [1.5, 0.9, 0.9]],
    )
    jobs = {
        "anisotropic": Job(labels=classes(3), made=prostate),
        "coarse_last_axis": Job(labels=classes(2), made=last_axis, channel="CT"),
        "fine_slices_are_not_chosen_finer_than_the_rest": Job(
            labels=classes(2), made=alike([[10, 200, 200]] * 12, [[1.5, 1.6, 1.6]] + [[8.0, 1.6, 1.6]] * 11)
        ),
        "big": Job(labels=classes(5), made=ct, channel="CT"),
        "big_thick_slices": Job(
            labels=classes(15), made=alike([[104, 512, 512]] * 9, [[5.0, 0.68, 0.68]] * 9), channel="CT"
        ),
        "many_classes": Job(
            labels=classes(118), made=alike([[267, 260, 260]] * 30, [[1.5, 1.5, 1.5]] * 30), channel="CT"
        ),
        "tiny": Job(labels=classes(3), made=alike([[16, 20, 18], [17, 19, 18]], [[1.0, 1.0, 1.0]] * 2)),
        "shallow": Job(labels=classes(2), made=alike([[9, 30, 11]] * 4, [[1.0, 1.0, 1.0]] * 4)),
        "slices": Job(labels=classes(2), made=alike([[1, 512, 620]] * 40, [[999.0, 1.0, 1.0]] * 40)),
        "cube": Job(labels=classes(2), made=alike([[200, 200, 200]] * 5, [[1.0, 1.0, 1.0]] * 5)),
        "half_voxels": Job(
            labels=classes(2), made=alike([[35, 51, 36], [36, 50, 35]], [[1.0, 1.0, 1.0]] * 2)
        ),
        "cropped": Job(
            labels=classes(4), made=alike([[138, 170, 138]] * 50, [[1.0, 1.0, 1.0]] * 50, kept=0.4)
        ),
        "unknown_voxels": Job(
            labels={**classes(3), "ignore": 3}, made=alike([[100, 120, 90]] * 20, [[2.0, 1.0, 1.5]] * 20)
        ),
        "regions": Job(
            labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
            region_classes=(1, 2, 3),
            made=alike([[138, 170, 138]] * 50, [[1.0, 1.0, 1.0]] * 50, kept=0.4),
        ),
        "other_memory": Job(
            labels=classes(5),
            made=ct,
            channel="CT",
            planners=("plain:4", "plain:16", "plain:24", "plain:80", "M:80", "L:11"),
        ),
    }
    for seed in range(24):
        jobs[f"random_{seed:02d}"] = Job(labels=classes(2 + seed % 5), made=random_collection(seed))
    return jobs


def real_jobs(folder: Path, data: Path) -> Iterator[tuple[str, Job]]:
    """Lay out three data sets of real images as nnU-Net wants them."""
    organs = data / "organs"
    spleen = organs / "spleen_msd"
    totalseg = {
        "example": (organs / "totalseg" / "example_ct_sm.nii.gz", organs / "totalseg" / "example_seg.nii.gz")
    }
    manual = spleen / "derivatives" / "labels" / "sub-spleen2" / "ct" / "sub-spleen2_ct_seg-manual.nii.gz"
    hippocampus = {
        path.name.removesuffix(".nii.gz"): (path, data / "hippocampus" / "labels" / path.name)
        for path in sorted((data / "hippocampus" / "images").glob("*.nii.gz"))
        if (data / "hippocampus" / "labels" / path.name).is_file()
    }
    for name, files, job in (
        ("hippocampus", hippocampus, Job(labels=classes(3))),
        (
            "spleen",
            {"spleen2": (spleen / "sub-spleen2" / "ct" / "sub-spleen2_ct.nii.gz", manual)},
            Job(labels=classes(2), channel="CT"),
        ),
        ("totalseg", totalseg, Job(labels=classes(118), channel="CT")),
    ):
        for case, (image, labels) in files.items():
            for source, target in (
                (image, f"imagesTr/{case}_0000.nii.gz"),
                (labels, f"labelsTr/{case}.nii.gz"),
            ):
                path = folder / name / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(source)
        yield name, job


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What nnU-Net said."""

    jobs: Mapping[str, Job]
    results: Values
    raw: Path  # folders of the data sets, by name

    def measure(self, name: str) -> Fingerprint:
        job = self.jobs[name]
        sources = dataset.open_folder(self.raw / name, classes=job.aim.classes).cases
        orientation = fingerprint.stored_orientation(sources[0].read().image)
        return fingerprint.measure(
            ((case.image, case.labels) for case in (source.read() for source in sources)),
            count=len(sources),
            orientation=orientation,
            modalities=job.modalities,
        )

    def fingerprint(self, name: str) -> Fingerprint:
        return fingerprint.parse_nnunet(
            json.dumps(self.results[name]["fingerprint"]),
            orientation="HAR",
            modalities=self.jobs[name].modalities,
        )


@pytest.fixture(scope="module")
def answers(nnunet_python: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("planning")
    real = dict(real_jobs(folder / "real", data_dir))
    jobs = {**made_jobs(), **real}
    numbered = {name: f"Dataset{index:03d}_{name}" for index, name in enumerate(jobs, start=1)}
    for name, job in jobs.items():
        raw = folder / "raw" / numbered[name]
        if job.made is None:
            raw.parent.mkdir(exist_ok=True)
            (folder / "real" / name).rename(raw)
            count = len(list((raw / "imagesTr").iterdir()))
        else:
            count = len(job.made["spacings"])
            write_names(raw, count)
        write_dataset(raw, job, count)
    wishes = {numbered[n]: {"fingerprint": job.made, "planners": job.planners} for n, job in jobs.items()}
    (folder / "jobs.json").write_text(json.dumps(wishes))
    subprocess.run([nnunet_python, HERE / "plan_with_nnunet.py", folder], check=True, capture_output=True)
    said = json.loads((folder / "results.json").read_text())
    for name in real:
        (folder / name).symlink_to(folder / "raw" / numbered[name])
    return Answers(jobs=jobs, results={name: said[numbered[name]] for name in jobs}, raw=folder)


def write_names(raw: Path, count: int) -> None:
    for index in range(count):
        for part, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
            (raw / part).mkdir(parents=True, exist_ok=True)
            (raw / part / f"case{index:04d}{ending}.nii.gz").touch()


def write_dataset(raw: Path, job: Job, count: int) -> None:
    content = {
        "channel_names": {"0": job.channel},
        "labels": job.labels,
        "numTraining": count,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "SimpleITKIO",
    }
    if job.region_classes:
        content["regions_class_order"] = list(job.region_classes)
    (raw / "dataset.json").write_text(json.dumps(content))


def ours(planned: PlannedTraining) -> Values:
    """Say what was planned, in the words of nnU-Net."""
    stage, network = planned.plan.final, planned.plan.final.network
    first = 3 - network.dimensions
    assert network.kind in {"plain_conv_unet", "residual_encoder_unet"}
    return {
        "patch_size": list(stage.patch_shape[first:]),
        "spacing": list(stage.spacing_mm[first:]),
        "batch_size": planned.batch_size,
        "batch_dice": planned.batch_dice,
        "median": list(planned.median_shape[first:]),
        "strides": [list(one[first:]) for one in network.strides],
        "kernels": [list(one[first:]) for one in network.kernels],
        "features": list(network.features),
        "encoder": list(network.encoder_depths),
        "decoder": list(network.decoder_depths),
        "class": network.kind,
        "transpose": list(planned.plan.axis_order),
        "normalisation": stage.normalisation.method,
        "mask": getattr(stage.normalisation, "over", "") == "nonzero_filled",
    }


def theirs(plans: Values, name: str) -> Values:
    found = plans["configurations"][name]
    found = (
        {**plans["configurations"][found["inherits_from"]], **found} if "inherits_from" in found else found
    )
    options = found["architecture"]["arch_kwargs"]
    return {
        "patch_size": found["patch_size"],
        "spacing": found["spacing"],
        "batch_size": found["batch_size"],
        "batch_dice": found["batch_dice"],
        "median": found["median_image_size_in_voxels"],
        "strides": options["strides"],
        "kernels": options["kernel_sizes"],
        "features": options["features_per_stage"],
        "encoder": options.get("n_conv_per_stage") or options.get("n_blocks_per_stage"),
        "decoder": options["n_conv_per_stage_decoder"],
        "class": {"PlainConvUNet": "plain_conv_unet", "ResidualEncoderUNet": "residual_encoder_unet"}[
            found["architecture"]["network_class_name"].rpartition(".")[2]
        ],
        "transpose": plans["transpose_forward"],
        "normalisation": {"CTNormalization": "clip_and_standardise", "ZScoreNormalization": "z_score"}[
            found["normalization_schemes"][0]
        ],
        "mask": found["use_mask_for_norm"][0],
    }


def compare(measured: Fingerprint, answers: Answers, name: str) -> int:
    """Compare all configurations of all planners; give how many there were."""
    count = 0
    for wish, plans in answers.results[name]["plans"].items():
        preset, memory_gb = wish.split(":")
        planned = nnunet_planner.plan(
            measured, answers.jobs[name].aim, preset=preset, memory_gb=float(memory_gb) if memory_gb else None
        )
        found = {one.configuration: ours(one) for one in planned}
        wanted = {one: theirs(plans, one) for one in plans["configurations"]}
        assert found.keys() == wanted.keys(), (name, wish)
        for configuration, values in wanted.items():
            where = (name, wish, configuration)
            spacing = values.pop("spacing")
            assert found[configuration].pop("spacing") == pytest.approx(spacing, rel=1e-6), where
            assert found[configuration] == values, where
        count += len(wanted)
    return count


def test_plans_for_made_up_collections_are_those_of_nnunet(answers: Answers) -> None:
    made = [name for name, job in answers.jobs.items() if job.made is not None]

    counts = {name: compare(answers.fingerprint(name), answers, name) for name in made}

    assert counts["big"] == 4 + 4 + 4 + 2  # no coarser grid for XL, whose patch covers a quarter of the image
    assert counts["slices"] == 4  # 2d only
    print(f"{sum(counts.values())} configurations of {len(counts)} collections compared")


@pytest.mark.parametrize("name", ["hippocampus", "spleen", "totalseg"])
def test_fingerprint_and_plans_of_real_images_are_those_of_nnunet(answers: Answers, name: str) -> None:
    measured, wanted = answers.measure(name), answers.fingerprint(name)

    assert np.array_equal(measured.shapes_after_crop, wanted.shapes_after_crop)
    assert measured.spacings_mm == pytest.approx(wanted.spacings_mm, rel=1e-6)
    kept = wanted.median_relative_size_after_cropping
    assert measured.median_relative_size_after_cropping == pytest.approx(kept, rel=1e-12)
    for key in ("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"):
        found, expected = (
            getattr(one.foreground_intensity_properties_per_channel[0], key) for one in (measured, wanted)
        )
        assert found == pytest.approx(expected, rel=2e-6), key
    assert compare(measured, answers, name) >= 8
