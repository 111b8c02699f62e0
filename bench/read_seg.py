"""Received corrections on disk to masks on the image grid, beside other readers: seconds and peak memory.

    python bench/read_seg.py [--slices 300] [--size 512] [--labels 20] [--repeats 3] [--folder DIR]

The series and label map of `seg.py` are written as BINARY, BINARY with run lengths of 1-bit pixels (as
Cornerstone does), LABELMAP in RLE, FRACTIONAL in RLE and RTSTRUCT. Then each contender reads them in a
process of its own, in turn. The clock runs from the file to one mask per label that has the size of the
image, whose headers were read before. The programs write files, on their own part of the grid, instead.
highdicom gives masks in two documented ways: one volume with a channel for each segment, or (combined) a
label map, made without looking for overlaps, that is then compared with each number.

Afterwards, off the clock, all masks are compared with the label map. The node must have the same voxels;
that a reader has others, or reads nothing, is told, and no ratio is given for it. The figures are medians.
"Peak" is the resident memory of the whole process, "added" what the clocked part put on top of the rest.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from types import ModuleType

import dcmqi
import highdicom as hd
import numpy as np
import seg
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless, generate_uid
from scipy.ndimage import uniform_filter

from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.reading import rtstruct_read, seg_read
from dicomnode.imaging.results.seg_encode import encode_rle, unpack_frame

Masks = Mapping[str, NDArray[np.bool_]]
Read = Callable[[], Callable[[], Masks]]
"""The part that is timed; what it gives hands out the masks for the comparison, which is not timed."""

HALF = 128  # of 255, rounded up
SEGIMAGE2ITKIMAGE = str(Path(dcmqi.__file__).parent / "bin" / "segimage2itkimage")


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_objects(folder, slices=arguments.slices, size=arguments.size, labels=arguments.labels)
        runs = defaultdict[str, list[dict[str, float]]](list)
        unread: dict[str, str] = {}
        for _ in range(arguments.repeats):
            for name in [name for name in CONTENDERS if name not in unread]:
                found = in_fresh_process(name, folder)
                if isinstance(found, str):
                    unread[name] = found
                else:
                    runs[name].append(found)
    figures = {
        name: {key: round(median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    print_table(figures, unread)
    print(json.dumps(summary(figures, unread, arguments)))


def summary(
    figures: Mapping[str, Mapping[str, float]], unread: Mapping[str, str], arguments: argparse.Namespace
) -> dict[str, object]:
    """Put the figures beside each other; ratios above 1 mean that the node was faster."""
    return {
        "bench": "read_seg",
        **{key: getattr(arguments, key) for key in ("slices", "size", "labels", "repeats")},
        "figures": figures,
        "not_read": unread,
        "ratios": {
            name: round(values["seconds"] / figures[f"{name.partition(':')[0]}: node"]["seconds"], 2)
            for name, values in figures.items()
            if not name.endswith(": node") and not values["other_voxels"]
        },
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def in_fresh_process(name: str, folder: Path) -> dict[str, float] | str:
    """Run one contender; give its figures, or why it did not read the object, which the node must."""
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"ended with {done.returncode}"])[-1].strip()
        if name.endswith(": node"):
            raise SystemExit(f"{name}: {reason}")
        return reason
    figures = dict(json.loads(done.stdout.splitlines()[-1]))
    if name.endswith(": node") and figures["other_voxels"]:
        raise SystemExit(f"{name} gives {figures['other_voxels']} other voxels than the label map has")
    return figures


def run_contender(name: str, folder: Path) -> dict[str, float]:
    """Measure one contender in this process."""
    read = CONTENDERS[name](folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    before_mb = seg.peak_mb()
    began = time.perf_counter()
    hand_out = read()
    seconds = time.perf_counter() - began
    peak = max(seg.CHILD_PEAKS_MB, default=0.0) or seg.peak_mb()
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "added_mb": peak if seg.CHILD_PEAKS_MB else peak - before_mb,
        "other_voxels": other_voxels(hand_out(), np.load(folder / "labels.npy")),
    }


def other_voxels(masks: Masks, labels: NDArray[np.uint8]) -> int:
    """Count the voxels that differ from the label map; a label too many or too few counts as a whole."""
    wanted = {f"Organ {number}": number for number in np.unique(labels[labels != 0]).tolist()}
    return sum(
        int(np.count_nonzero(masks.get(label, np.False_) != (labels == wanted.get(label, -1))))
        for label in wanted.keys() | masks.keys()
    )


def node(reader: ModuleType, file: str) -> Callable[[Path], Read]:
    """Prepare one of the node's readers."""

    def prepare(folder: Path) -> Read:
        stack = only_stack(seg.headers(folder))
        card = seg.card(int(np.load(folder / "labels.npy").max()))

        def read() -> Callable[[], Masks]:
            decoded = reader.decode(dcmread(folder / file), stack=stack, card=card)
            return lambda: decoded.masks

        return read

    return prepare


def highdicom(file: str, *, combine: bool = False, threshold: int = 0) -> Callable[[Path], Read]:
    """Prepare highdicom's Segmentation; `threshold` for fractions as stored."""

    def prepare(folder: Path) -> Read:
        stack = only_stack(seg.headers(folder))
        space = {"frame_of_reference_uid": stack.grid.frame_of_reference_uid}
        grid = hd.VolumeGeometry(stack.grid.affine, stack.shape, "PATIENT", **space)
        hd.seg.segread(folder / file)  # it loads its tables of attributes on first use

        def read() -> Callable[[], Masks]:
            ds = hd.seg.segread(folder / file)
            numbers = {ds.get_segment_description(n).segment_label: n for n in ds.segment_numbers}
            volume = ds.get_volume(
                combine_segments=combine, skip_overlap_checks=combine, rescale_fractional=False
            )
            array = volume.match_geometry(grid).array
            if combine:
                masks = {label: array == number for label, number in numbers.items()}
            else:
                stacked = array >= threshold if threshold else array.view(np.bool_)
                masks = {label: stacked[..., index] for index, label in enumerate(numbers)}
            return lambda: masks

        return read

    return prepare


def segimage2itkimage(file: str, *, threshold: int = 0) -> Callable[[Path], Read]:
    """Prepare dcmqi's program, which writes compressed files: a label map, or each segment's fractions."""

    def prepare(folder: Path) -> Read:
        output = Path(tempfile.mkdtemp(dir=folder))
        command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", str(folder / file), "--outputDirectory", str(output)]

        def read() -> Callable[[], Masks]:
            seg.run_program([*command, "-t", "nrrd", *([] if threshold else ["--mergeSegments"])])
            return lambda: dcmqi_masks(output, np.load(folder / "labels.npy").shape, threshold)

        return read

    return prepare


def dcmqi_masks(output: Path, shape: tuple[int, int, int], threshold: int) -> Masks:
    """Put what dcmqi wrote on the grid of the image."""
    masks: dict[str, NDArray[np.bool_]] = {}
    names = json.loads((output / "meta.json").read_text())["segmentAttributes"]
    for number, items in enumerate(names, start=1):
        image = SimpleITK.ReadImage(str(output / f"{number}.nrrd"))
        values = SimpleITK.GetArrayFromImage(image)
        first = round(image.GetOrigin()[2] / seg.SPACING_MM[0])
        for item in items:
            mask = masks.setdefault(item["SegmentLabel"], np.zeros(shape, np.bool_))
            mask[first:][: len(values)] |= values >= threshold if threshold else values == item["labelID"]
    return masks


def plastimatch(folder: Path) -> Read:
    """Prepare plastimatch, which writes an uncompressed file for each structure, of the image's size."""
    output = Path(tempfile.mkdtemp(dir=folder))
    files = ["--input", str(folder / "RTSTRUCT.dcm"), "--referenced-ct", str(folder / "images")]

    def read() -> Callable[[], Masks]:
        seg.run_program(["plastimatch", "convert", *files, "--output-prefix", str(output)])
        return lambda: {
            path.stem: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) != 0
            for path in output.glob("*.mha")
        }

    return read


CONTENDERS: dict[str, Callable[[Path], Read]] = {
    f"{form}: {name}": prepare
    for form, threshold in {"BINARY": 0, "BINARY RLE": 0, "LABELMAP RLE": 0, "FRACTIONAL RLE": HALF}.items()
    for name, prepare in {
        "node": node(seg_read, f"{form}.dcm"),
        "highdicom": highdicom(f"{form}.dcm", threshold=threshold),
        "highdicom combined": highdicom(f"{form}.dcm", combine=True),
        "dcmqi": segimage2itkimage(f"{form}.dcm", threshold=threshold),
    }.items()
    if not (threshold and name == "highdicom combined")  # fractions cannot be combined
} | {"RTSTRUCT: node": node(rtstruct_read, "RTSTRUCT.dcm"), "RTSTRUCT: plastimatch": plastimatch}


def make_objects(folder: Path, *, slices: int, size: int, labels: int) -> None:
    """Write the series and the same label map in all forms."""
    seg.make_series(folder, slices=slices, size=size, labels=labels)
    for own, form in {"BINARY": "BINARY", "LABELMAP": "LABELMAP RLE", "RTSTRUCT": "RTSTRUCT"}.items():
        (path,) = seg.CONTENDERS[f"node {own}"](folder)()
        path.rename(folder / f"{form}.dcm")
    ds = dcmread(folder / "BINARY.dcm")
    packed, shape = np.frombuffer(ds.PixelData, np.uint8), (ds.Rows, ds.Columns)
    masks = [unpack_frame(packed, index, shape=shape) for index in range(int(ds.NumberOfFrames))]
    bits = [np.packbits(mask, bitorder="little")[None] for mask in masks]
    save_compressed(ds, folder / "BINARY RLE.dcm", [encode_rle(frame) for frame in bits])
    ds.SegmentationType, ds.SegmentationFractionalType = "FRACTIONAL", "PROBABILITY"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.MaximumFractionalValue = 8, 8, 7, 255
    save_compressed(ds, folder / "FRACTIONAL RLE.dcm", [fractions(mask) for mask in masks])


def fractions(mask: NDArray[np.bool_]) -> bytes:
    """Make a mask into probabilities with soft edges, of at least half where the mask is, else less."""
    return encode_rle(uniform_filter(mask * np.uint8(255), 5) // 2 + mask * np.uint8(HALF))


def save_compressed(ds: Dataset, path: Path, codes: list[bytes]) -> None:
    """Write an object with other frames."""
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = encapsulate(codes)
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path, enforce_file_format=True)


def print_table(figures: Mapping[str, Mapping[str, float]], unread: Mapping[str, str]) -> None:
    """Print seconds, peak memory and how the voxels compare."""
    print(f"{'object: reader':<36}{'seconds':>10}{'peak MB':>10}{'added MB':>10}  voxels")
    for name in CONTENDERS:
        if name in unread:
            print(f"{name:<36}{'-':>10}{'-':>10}{'-':>10}  not read: {unread[name]}")
            continue
        values, others = figures[name], figures[name]["other_voxels"]
        print(f"{name:<36}{values['seconds']:>10.2f}{values['peak_mb']:>10.0f}", end="")
        print(f"{values['added_mb']:>10.0f}  {f'{others:.0f} other' if others else 'the same'}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Corrections of 20 labels on 300 slices to masks.")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--labels", type=int, default=20, help="at most 30, which fit into one BINARY object")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--contender", choices=list(CONTENDERS), default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
