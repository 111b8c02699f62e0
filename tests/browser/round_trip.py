"""A node, an archive that routes to it and OHIF before the archive; readings that owe the node nothing."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from tests.peers import Orthanc
from tests.story.site import Site

Labels = NDArray[np.uint8]
"""Segment numbers, (slice, row, column), slices ascending along the normal."""

LIMIT_S = 120.0
ROUTING = """
local function forward(resource)
  local order = { Resources = { resource }, Synchronous = false }
  RestApiPost("/modalities/node/store", DumpJson(order))
end

function OnStableSeries(seriesId, tags, metadata)
  if tags["Modality"] == "MR" then
    forward(seriesId)
  end
end

function OnStoredInstance(instanceId, tags, metadata, origin)
  local drawn = { SEG = true, RTSTRUCT = true }
  if drawn[tags["Modality"]] and origin["RemoteAet"] ~= "DICOMNODE" then
    forward(instanceId)
  end
end
"""
"""The rules of docs/viewers.md, for Orthanc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """A series of single-frame images, ascending along the normal."""

    datasets: tuple[Dataset, ...]

    @property
    def uids(self) -> list[str]:
        """SOP Instance UIDs; the place in the list is the node's index of the slice."""
        return [str(ds.SOPInstanceUID) for ds in self.datasets]

    @property
    def series_instance_uid(self) -> str:
        """Of all of them."""
        return str(self.datasets[0].SeriesInstanceUID)

    @property
    def study_instance_uid(self) -> str:
        """Of all of them."""
        return str(self.datasets[0].StudyInstanceUID)

    def slice_at(self, position_mm: Sequence[float]) -> int:
        """The slice that lies at a position of patient space, within 0.01 mm."""
        away = [np.linalg.norm(np.subtract(ds.ImagePositionPatient, position_mm)) for ds in self.datasets]
        nearest = int(np.argmin(away))
        assert away[nearest] < 0.01, f"no image at {position_mm}"
        return nearest

    def point_mm(self, index: int, row: float, column: float) -> NDArray[np.float64]:
        """Centre of a voxel in LPS (PS3.3 C.7.6.2.1.1)."""
        ds = self.datasets[index]
        along, down = np.array(ds.ImageOrientationPatient, np.float64).reshape(2, 3)
        between_rows, between_columns = map(float, ds.PixelSpacing)
        first = np.array(ds.ImagePositionPatient, np.float64)
        return np.asarray(first + column * between_columns * along + row * between_rows * down)


def read_images(folder: Path) -> Images:
    """Read the single-frame images below a folder."""
    found = [dcmread(path) for path in folder.rglob("*.dcm")]
    along, down = np.array(found[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    normal = np.cross(along, down)
    found.sort(key=lambda ds: float(np.dot(ds.ImagePositionPatient, normal)))
    return Images(datasets=tuple(found))


def read_segmentation(ds: Dataset, images: Images) -> Labels:
    """Read a BINARY or LABELMAP segmentation with pydicom alone.

    Each frame names one image, and lies where that image lies; else the reading fails.
    """
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    labels = np.zeros((len(images.datasets), ds.Rows, ds.Columns), np.uint8)
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        index = images.uids.index(str(source.ReferencedSOPInstanceUID))
        assert images.slice_at(groups.PlanePositionSequence[0].ImagePositionPatient) == index
        if ds.SegmentationType == "LABELMAP":
            values = frame
        else:
            values = frame * int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        labels[index] = np.maximum(labels[index], values)
    return labels


def scores(before: Labels, after: Labels, names: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """What the node should list of an edit, by label."""
    expected = {}
    for number, name in names.items():
        ours, theirs = before == number, after == number
        expected[name] = {
            "edited_slices": [index for index in range(len(ours)) if (ours[index] != theirs[index]).any()],
            "prediction_voxels": int(ours.sum()),
            "correction_voxels": int(theirs.sum()),
            "dice": 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum()),
        }
    return expected


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """What runs."""

    site: Site
    orthanc: Orthanc
    viewer: Any  # ohif.Viewer
    addresses: Mapping[str, str]  # of the viewer, by the SOP class that it saves
    images: Mapping[str, Images]  # by name of the study

    def open(self, study: str, *, series_number: int, saves: str) -> Labels:
        """Open a study and one of our results in it as a reader does; gives what the viewer loaded."""
        self.viewer.address = self.addresses[saves]
        self.viewer.open_study(self.images[study].study_instance_uid, mode="segmentation")
        self.viewer.open_result(series_number)
        return self.held(self.images[study])

    def held(self, images: Images) -> Labels:
        """The segment numbers that the viewer holds now."""
        masks = self.viewer.masks()
        assert {uid for uid, _ in masks} == set(images.uids)
        return np.stack([masks[uid, 1] for uid in images.uids])

    def write(self, images: Images, labels: Labels) -> None:
        """Write voxels into what the viewer holds, where they differ."""
        held = self.held(images)
        changed = [index for index in range(len(held)) if (held[index] != labels[index]).any()]
        self.viewer.write({(images.uids[index], 1): labels[index] for index in changed})

    def save(self, description: str) -> bytes:
        """Save what is open, and fetch what the archive got."""
        known = set(self.orthanc.find("/instances"))
        self.viewer.save(description)
        (new,) = set(self.orthanc.find("/instances")) - known
        return self.orthanc.get(f"/instances/{new}/file")

    def sent(self, images: Images, series_number: int) -> Dataset:
        """Our result of a series as the archive has it."""
        for name in self.orthanc.find("/instances"):
            ds = dcmread(BytesIO(self.orthanc.get(f"/instances/{name}/file")))
            if ds.StudyInstanceUID == images.study_instance_uid and ds.SeriesNumber == series_number:
                return ds
        raise AssertionError(f"no series {series_number}")

    def listed(self, sop_instance_uid: str) -> dict[str, Any]:
        """Wait until the node lists what it made of an object."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            for record in self.site.ask("corrections", "list"):
                if record["sop_instance_uid"] == sop_instance_uid:
                    return dict(record)
            time.sleep(0.2)
        raise AssertionError(f"{sop_instance_uid} is not listed; {self.site.ask('status')}")
