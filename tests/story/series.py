"""Series to tell stories with: crops of the MNI average brain, each copy a patient of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from dicomnode.demo.inputs import write_mni_series
from dicomnode.domain import Destination
from dicomnode.imaging.images.series import to_volume
from dicomnode.imaging.results.mr_write import encode_series
from dicomnode.scp import sender

SENDER = "SCANNER"
Change = Callable[[Dataset], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One image series as files."""

    series_instance_uid: str
    files: tuple[Path, ...]

    def send(self, destination: Destination) -> None:
        """Send it over one association."""
        sender.send_many(self.files, destination, ae_title=SENDER)


@cache
def mni_crops() -> tuple[hd.Volume, ...]:
    """Both hippocampi of the average brain, (slice, row, column)."""
    with TemporaryDirectory() as folder:
        made = write_mni_series(Path(folder) / "mni", now=datetime.now(UTC))
        return tuple(to_volume([dcmread(path) for path in one.files]).image for one in made)


def write_series(
    folder: Path, *, seed: int = 0, slices: int | None = None, change: Change = lambda _: None
) -> Series:
    """Write a crop with fresh noise and fresh UIDs.

    Parameters
    ----------
    slices
        Keep only so many, from the middle.
    change
        Applied to each data set before it is written.
    """
    image = mni_crops()[seed % 2]
    first = 0 if slices is None else (image.shape[0] - slices) // 2
    image = image[first : image.shape[0] if slices is None else first + slices]
    noise = np.random.default_rng(seed).normal(0, 0.02 * float(image.array.max()), image.shape)
    datasets = encode_series(
        image.with_array(np.clip(image.array + noise, 0, None).round()),
        patient_id=f"STORY-{seed}",
        patient_name=f"Story^{seed}",
        study_description="Story",
        series_description="T1 crop",
        study_instance_uid=generate_uid(),
        series_instance_uid=generate_uid(),
        series_number=1,
        created_at=datetime.now(UTC),
    )
    return save(folder, datasets, change)


def save(folder: Path, datasets: list[Dataset], change: Change = lambda _: None) -> Series:
    """Write data sets as the files of one series."""
    folder.mkdir(parents=True)
    files = tuple(folder / f"{number:03d}.dcm" for number in range(len(datasets)))
    for ds, path in zip(datasets, files, strict=True):
        change(ds)
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.save_as(path, enforce_file_format=True)
    return Series(series_instance_uid=str(datasets[0].SeriesInstanceUID), files=files)
