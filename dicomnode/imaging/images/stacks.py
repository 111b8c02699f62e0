"""The stacks of parallel planes that a series holds, and the regular grid on which a model sees each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.errors import GeometryError, UnreadableInstanceError, UnsupportedSeriesError
from dicomnode.imaging import attributes
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.images.fitting import fit_grid
from dicomnode.imaging.images.frame_facts import FrameFacts
from dicomnode.imaging.images.frames import SourceFrame, read_frames
from dicomnode.imaging.images.geometry import SliceGrid
from dicomnode.imaging.images.splitting import Part, split_by_plane, split_repeated

_NAMED_STACKS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """Parallel planes of one series in ascending order along their normal.

    `frames[k]` lies in the plane of its own; `grid` is the regular grid for the model. The first pixel of
    `frames[k]` lies at index `offsets[k]` = (slice, row, column) of the grid, in fractions of a voxel; for a
    regular stack that is (k, 0, 0). A tilted gantry moves rows and columns, a missing slice the slices.
    """

    series_instance_uid: str
    name: str  # "" where the series is this one stack; else what tells it apart: "echo time 4.6 ms"
    frames: tuple[SourceFrame, ...]
    grid: SliceGrid
    offsets: FloatArray  # (frames, 3)
    missing_slices: int = 0  # the most in one gap; at least 1 where slices are unevenly spaced
    remarks: tuple[str, ...] = ()  # what is not regular, with values, for people; said in every result
    refusal: str = ""  # why no volume is made of it whatever a route allows; "" where one can be made

    @property
    def is_regular(self) -> bool:
        """Answer whether the planes are the slices of the grid, so that nothing is resampled."""
        if self.shape != self.grid.shape:
            return False
        own = np.zeros_like(self.offsets)
        own[:, 0] = np.arange(len(self.frames))
        return bool((self.offsets == own).all())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an array on the planes themselves: (frame, row, column)."""
        return (len(self.frames), *self.frames[0].size)

    @property
    def first(self) -> Dataset:
        """The instance of the first plane, which stands for the series in a result's header."""
        return self.frames[0].ds

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The instances, each once, in the order of their first plane."""
        return tuple({id(frame.ds): frame.ds for frame in self.frames}.values())

    @property
    def facts(self) -> FrameFacts:
        """What the first plane says of itself: echo time, b-value, phase."""
        return self.frames[0].facts


def read_stacks(datasets: Sequence[Dataset]) -> tuple[Stack, ...]:
    """Sort the planes of a series into stacks; neither tilt nor gaps are refused here.

    Planes that differ in size, orientation, pixel spacing or frame of reference are of different stacks.
    Where positions repeat, planes are told apart by what they say: see `splitting.split_repeated`. The order
    of the stacks does not depend on the order of the instances.

    Raises
    ------
    GeometryError
        A plane has no geometry, or two lie at one position and nothing tells them apart; the message names
        the defect, the values and the UIDs.
    UnreadableInstanceError
        Several series, a UID is missing or there twice, or a multi-frame image contradicts itself.
    """
    if not datasets:
        raise GeometryError("no images: at least one slice was expected")
    series_uid = _series_uid(datasets)
    frames = read_frames(sorted(datasets, key=lambda ds: attributes.text(ds, "SOPInstanceUID")))
    parts = [
        part
        for plane_part in split_by_plane(frames)
        for part in split_repeated(frames, plane_part, series_uid=series_uid)
    ]
    return tuple(_stack(frames, part, series_uid) for part in parts)


def only_stack(datasets: Sequence[Dataset]) -> Stack:
    """Read the stack of a series that holds one.

    Raises
    ------
    UnsupportedSeriesError
        The series holds several; the message names them.
    """
    stacks = read_stacks(datasets)
    if len(stacks) > 1:
        names = [f"{stack.name} ({len(stack.frames)} slices)" for stack in stacks[:_NAMED_STACKS]]
        more = len(stacks) - len(names)
        raise UnsupportedSeriesError(
            f"series {stacks[0].series_instance_uid} holds {len(stacks)} stacks: {'; '.join(names)}"
            f"{f'; and {more} more' if more else ''}; a rule must say which one is meant"
        )
    return stacks[0]


def _stack(frames: Sequence[SourceFrame], part: Part, series_uid: str) -> Stack:
    own = [frames[index] for index in part.indices]
    fit = fit_grid(own, series_uid=series_uid)
    return Stack(
        series_instance_uid=series_uid,
        name=part.name,
        frames=tuple(own[index] for index in fit.order.tolist()),
        grid=fit.grid,
        offsets=fit.offsets,
        missing_slices=fit.missing_slices,
        remarks=fit.remarks,
        refusal=fit.refusal,
    )


def _series_uid(datasets: Sequence[Dataset]) -> str:
    series_uids = {attributes.text(ds, "SeriesInstanceUID") for ds in datasets}
    if len(series_uids) > 1 or "" in series_uids:
        raise UnreadableInstanceError(f"images of one series were expected, found {sorted(series_uids)}")
    series_uid = series_uids.pop()
    instance_uids = {attributes.text(ds, "SOPInstanceUID") for ds in datasets}
    if len(instance_uids) < len(datasets) or "" in instance_uids:
        raise UnreadableInstanceError(f"series {series_uid}: a SOP Instance UID is missing or there twice")
    return series_uid
