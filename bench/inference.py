"""`dicomnode segment` beside `nnUNetv2_predict`: seconds and peak memory of whole processes, same weights.

    python bench/inference.py --nnunet PYTHON --models FOLDER --ct IMAGE.nii.gz [--only large] [--threads 2]

PYTHON is an interpreter that has nnunetv2; FOLDER holds the narrow residual CT model as an exported zip; from
IMAGE, a small CT, the large volume of 512 x 512 x 300 voxels is made (resampled, mirror-tiled, with noise).
The node begins with the DICOM slices of a folder and ends with a DICOM SEG, a picture and a table; nnU-Net
begins and ends with NIfTI. Both use one model, tile step 0.5, the CPU and the same number of threads, one
after the other. Four runs: without and with mirroring, with 20 classes (heads drawn at random), and at the
planned full width (every channel of the narrow model four times, so that the labels stay what they are).

Seconds are wall time from start to end of the process, imports included. The node is one process, whose peak
of resident memory the kernel knows; nnU-Net starts several, whose shares of memory are added up every two
seconds. Labels are compared voxel by voxel.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from dicomnode.ml.imports.importer import ImportOptions, import_model
from dicomnode.ml.model import package

SHAPE = (512, 512, 300)
SPACING_MM = (0.8, 0.8, 1.0)
NARROW = "Dataset009_SpleenCT_3d_fullres_resencM_narrow.zip"
FULL_WIDTH = (32, 64, 128, 256, 320)
REPEATS = 4  # of each channel of the narrow model
MIB = 1024 * 1024
LOOK_S = 0.2  # between two looks at the memory of a process
LOOKS_PER_SUM = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison."""

    name: str
    mirror: bool = False
    classes: int = 2
    features: tuple[int, ...] | None = None  # None: those of the model


CASES = (
    Case(name="large"),
    Case(name="large, mirroring", mirror=True),
    Case(name="large, 20 classes", classes=20),
    Case(name="large, full width", features=FULL_WIDTH),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one whole process took."""

    seconds: float
    peak_mib: float  # of the largest process
    tree_mib: float  # of all processes together


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_large_ct(arguments.ct, folder)
        wanted = [case for case in CASES if not arguments.only or case.name in arguments.only]
        rows = []
        print_head()
        for case in wanted:
            rows.append(compare(case, folder, arguments))
            print_row(rows[-1])
    print(json.dumps(summary(rows, arguments)))


def compare(case: Case, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Run both programs on one case."""
    results = make_results(case, folder / case.name.replace(" ", "-"), arguments.models / NARROW)
    theirs = nnunet(case, folder, results, arguments)
    ours = node(case, folder, results, arguments)
    found, expected = _our_labels(results), _their_labels(results / "theirs")
    return {
        "case": case.name,
        "ours": asdict(ours),
        "theirs": asdict(theirs),
        "time_vs_nnunet": round(ours.seconds / theirs.seconds, 3),
        "memory_vs_nnunet": round(ours.peak_mib / theirs.tree_mib, 3),
        "differing_voxels": int((found != expected).sum()),
        "lowest_dice": round(_lowest_dice(found, expected), 5),
    }


def node(case: Case, folder: Path, results: Path, arguments: argparse.Namespace) -> Run:
    """Segment the DICOM series with the imported model."""
    model = next((results / "nnUNet_results").glob("*/*"))
    options = ImportOptions(name="bench", orientation="acquired", modalities=("CT",))
    import_model(model, results / "package", options=options, progress=lambda *_: None)
    command = [
        sys.executable,
        "-m",
        "dicomnode",
        "segment",
        str(folder / "dicom"),
        "--out",
        str(results / "ours"),
    ]
    command += [
        "--model",
        str(results / "package"),
        "--result",
        "labelmap",
        "--threads",
        str(arguments.threads),
    ]
    command += ["--mirror" if case.mirror else "--no-mirror"]
    return measured(command, {}, results / "ours.log")


def nnunet(case: Case, folder: Path, results: Path, arguments: argparse.Namespace) -> Run:
    """Predict the NIfTI image with nnU-Net's own command."""
    program = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as run; run()"
    command = [
        str(arguments.nnunet),
        "-c",
        program,
        "-i",
        str(folder / "nifti"),
        "-o",
        str(results / "theirs"),
    ]
    command += [
        "-d",
        "9",
        "-c",
        "3d_fullres",
        "-f",
        "0",
        "-p",
        "nnUNetResEncUNetMPlansNarrow",
        "-device",
        "cpu",
    ]
    command += [] if case.mirror else ["--disable_tta"]
    threads = str(arguments.threads)
    places = {name: str(results / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    return measured(
        command, {**places, "OMP_NUM_THREADS": threads, "nnUNet_def_n_proc": threads}, results / "theirs.log"
    )


def measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Run:
    """Run a program to its end and watch the memory of it and its children, ten times a second."""
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    seen = _Seen()
    ended = threading.Event()
    watcher = threading.Thread(target=seen.watch, args=(process.pid, ended))
    watcher.start()
    status = process.wait()
    seconds = time.monotonic() - start
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return Run(
        seconds=round(seconds, 1),
        peak_mib=round(seen.largest / MIB, 0),
        tree_mib=round(seen.together / MIB, 0),
    )


class _Seen:
    """The most memory that a process and its children were seen to hold, in bytes.

    The peak of one process is what the kernel kept as such (VmHWM). The usage that `wait4` gives will not do:
    it begins with the memory of the process that forked.
    """

    largest = 0
    together = 0

    def watch(self, pid: int, ended: threading.Event) -> None:
        """Look often at what is cheap, and rarely at shares, for which the kernel walks all pages."""
        look = 0
        while not ended.wait(LOOK_S):
            family = _family(pid)
            self.largest = max(self.largest, *(_kept_bytes(one, "status", "VmHWM:") for one in family))
            if look % LOOKS_PER_SUM == 0:
                together = sum(_kept_bytes(one, "smaps_rollup", "Pss:") for one in family)
                self.together = max(self.together, together)
            look += 1


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


def _kept_bytes(pid: int, file: str, key: str) -> int:
    """Read a figure of a process; Pss is its share of memory, so that what processes share counts once."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def make_large_ct(source: Path, folder: Path) -> None:
    """Make the large volume from a small CT, as NIfTI and as DICOM slices along the same axes."""
    image = nib.load(source)
    old = np.linalg.norm(image.affine[:3, :3], axis=0)
    small = np.asanyarray(image.dataobj).astype(np.float32)
    size = np.round(np.array(small.shape) * old / SPACING_MM).astype(int)
    fine = ndimage.zoom(small, size / np.array(small.shape), order=1, mode="nearest", grid_mode=True)
    gaps = [(0, max(0, wanted - have)) for wanted, have in zip(SHAPE, fine.shape, strict=True)]
    tiled = np.pad(fine, gaps, mode="symmetric")[tuple(slice(0, wanted) for wanted in SHAPE)]
    noise = np.random.default_rng(7).normal(0, 8, SHAPE).astype(np.float32)
    voxels = np.clip(tiled + noise, -1100, 3000).round().astype(np.int16)
    affine = np.diag([*SPACING_MM, 1.0])
    (folder / "nifti").mkdir()
    nib.save(nib.Nifti1Image(voxels, affine), folder / "nifti" / "large_0000.nii.gz")
    (folder / "dicom").mkdir()
    uids = {key: generate_uid() for key in ("study", "series", "frame")}
    for index in range(SHAPE[2]):
        _write_slice(voxels[:, :, index].T, index, uids, folder / "dicom" / f"{index:04}.dcm")


def _write_slice(pixels: NDArray[np.int16], index: int, uids: Mapping[str, str], path: Path) -> None:
    """Write one slice whose columns grow towards the right of the patient and whose rows to the front."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        uids["study"],
        uids["series"],
        uids["frame"],
    )
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "Bench", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = "B-1", "Bench^One", "", "O"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20260101", "120000", "", "1"
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator, ds.KVP, ds.PatientPosition = (
        "",
        "",
        "120",
        "HFS",
    )
    ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 1, 1, index + 1
    ds.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    ds.ImagePositionPatient = [0, 0, index * SPACING_MM[2]]
    ds.PixelSpacing, ds.SliceThickness = [SPACING_MM[1], SPACING_MM[0]], SPACING_MM[2]
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *pixels.shape, 1
    ds.PhotometricInterpretation, ds.PixelRepresentation = "MONOCHROME2", 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    ds.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
    ds.save_as(path, enforce_file_format=True)


def make_results(case: Case, results: Path, model: Path) -> Path:
    """Unpack the model into a results folder of nnU-Net, with the classes and widths of the case."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (results / name).mkdir(parents=True)
    shutil.unpack_archive(model, results / "nnUNet_results")
    folder = next((results / "nnUNet_results").glob("*/*"))
    if case.features is None and case.classes == 2:
        return results
    plans = json.loads((folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    if case.features is not None:
        architecture["features_per_stage"] = list(case.features)
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = json.loads((folder / "dataset.json").read_text())
    names = ["background", "spleen", *(f"region {index}" for index in range(2, case.classes))]
    dataset["labels"] = {name: index for index, name in enumerate(names)}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    _reshape_weights(folder / "fold_0" / "checkpoint_final.pth", case)
    return results


def _reshape_weights(path: Path, case: Case) -> None:
    """Draw heads of more classes, or repeat the channels."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)  # made by this project's own tests
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = checkpoint["network_weights"]
    for name, tensor in tensors.items():
        if case.features is not None:
            tensors[name] = _widened(name, tensor)
        elif "seg_layers" in name:
            drawn = torch.randn(case.classes, *tensor.shape[1:]) * (float(tensor.std()) or 0.1)
            drawn[: len(tensor)] = tensor
            tensors[name] = drawn
    torch.save(checkpoint, path)


def _widened(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Give every channel as often as the planned width has room for it; the network computes the same."""
    axes = [axis for axis in (0, 1) if axis < tensor.ndim and tensor.shape[axis] > 1]
    if "seg_layers" in name:
        axes = [axis for axis in axes if axis == 1]
    for axis in axes:
        tensor = tensor.repeat_interleave(REPEATS, dim=axis)
    comes_in = 0 if "transpconvs" in name else 1
    return tensor / REPEATS if tensor.ndim > 1 and comes_in in axes else tensor


def _our_labels(results: Path) -> NDArray[np.uint8]:
    """Read the label map; the object numbers the segments that were found, the card knows their classes."""
    classes = {
        segment.label: segment.class_index for segment in package.read(results / "package").card.segments
    }
    ds = dcmread(next((results / "ours").glob("*.labelmap.dcm")))
    of_number = np.zeros(256, np.uint8)
    for item in ds.SegmentSequence:
        of_number[item.SegmentNumber] = classes.get(item.SegmentLabel, 0)
    labels: NDArray[np.uint8] = ds.pixel_array
    whole = np.zeros(SHAPE[::-1], np.uint8)
    for frame, groups in zip(labels, ds.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        whole[round(height / SPACING_MM[2])] = of_number[frame]
    return whole


def _their_labels(folder: Path) -> NDArray[np.uint8]:
    image = nib.load(folder / "large.nii.gz")
    return np.asanyarray(image.dataobj).astype(np.uint8).T


def _lowest_dice(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    dices = []
    for label in range(1, int(max(one.max(), other.max())) + 1):
        first, second = one == label, other == label
        total = int(first.sum() + second.sum())
        dices.append(2 * int((first & second).sum()) / total if total else 1.0)
    return min(dices, default=1.0)


def print_head() -> None:
    """Print what stands in the columns."""
    memory = f"{'ours MiB':>9} {'theirs MiB':>11} {'ratio':>6}"
    print(f"{'case':20} {'ours s':>8} {'theirs s':>9} {'ratio':>6} {memory} differ", flush=True)


def print_row(row: Mapping[str, object]) -> None:
    """Print one case."""
    ours, theirs = row["ours"], row["theirs"]
    assert isinstance(ours, dict)
    assert isinstance(theirs, dict)
    print(
        f"{row['case']:20} {ours['seconds']:8.1f} {theirs['seconds']:9.1f} {row['time_vs_nnunet']:6.3f} "
        f"{ours['peak_mib']:9.0f} {theirs['tree_mib']:11.0f} {row['memory_vs_nnunet']:6.3f} "
        f"{row['differing_voxels']}",
        flush=True,
    )


def summary(rows: Sequence[Mapping[str, object]], arguments: argparse.Namespace) -> dict[str, object]:
    """Put the figures beside each other: ours / theirs, the worst of the cases."""
    return {
        "bench": "inference",
        "threads": arguments.threads,
        "cases": list(rows),
        "ratios": {
            key: max(float(str(row[key])) for row in rows) for key in ("time_vs_nnunet", "memory_vs_nnunet")
        },
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nnunet", type=Path, default=os.environ.get("DICOMNODE_NNUNET"))
    parser.add_argument("--models", type=Path, default=Path("../shared/models/nnunet"))
    parser.add_argument(
        "--ct", type=Path, default=Path("../shared/data/organs/totalseg/example_ct_sm.nii.gz")
    )
    parser.add_argument("--only", action="append", help="name of a case; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to put the temporary files")
    return parser.parse_args()


if __name__ == "__main__":
    main()
