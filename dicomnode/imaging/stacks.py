"""The stacks of parallel planes that a series holds, and the regular grid on which a model sees each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset

from dicomnode.errors import UnsupportedSeriesError
from dicomnode.imaging.attributes import FloatArray
from dicomnode.imaging.frames import SourceFrame, read_frames
from dicomnode.imaging.geometry import SliceGrid, read_grid

OFFSET_TOLERANCE = 0.26
"""Parts of a voxel that a plane may lie beside its place on a grid that is called regular."""


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
    missing_slices: int = 0  # the most in one gap
    remarks: tuple[str, ...] = ()  # what is not regular, with values, for people; said in every result

    @property
    def is_regular(self) -> bool:
        """Answer whether the planes are the slices of the grid, so that nothing is resampled."""
        return len(self.frames) == self.grid.shape[0] and not self.remarks

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


def read_stacks(datasets: Sequence[Dataset]) -> tuple[Stack, ...]:
    """Sort the planes of a series into stacks.

    Raises
    ------
    GeometryError
        The planes form no stack by any rule; the message names the defect, the values and the UID.
    UnreadableInstanceError
        Several series, or a UID is missing or there twice.
    """
    ordered, grid = read_grid(datasets)
    offsets = np.zeros((len(ordered), 3))
    offsets[:, 0] = np.arange(len(ordered))
    return (
        Stack(
            series_instance_uid=grid.series_instance_uid,
            name="",
            frames=read_frames(ordered),
            grid=grid,
            offsets=offsets,
        ),
    )


def only_stack(datasets: Sequence[Dataset]) -> Stack:
    """Read the stack of a series that holds one.

    Raises
    ------
    UnsupportedSeriesError
        The series holds several; the message names them.
    """
    stacks = read_stacks(datasets)
    if len(stacks) > 1:
        names = ", ".join(f"{stack.name} ({len(stack.frames)} slices)" for stack in stacks)
        raise UnsupportedSeriesError(
            f"series {stacks[0].series_instance_uid} holds {len(stacks)} stacks: {names}; "
            f"a rule must say which one is meant"
        )
    return stacks[0]
