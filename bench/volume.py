"""Files on disk to a float32 volume: the node beside highdicom and SimpleITK, on the same files.

    python bench/volume.py [--slices 300] [--size 512] [--repeats 5] [--folder DIR]

Each contender runs in a process of its own, `--repeats` times in turn with the others; the files are in the
page cache. Seconds are those from a list of files, or a folder, to the array, without imports; memory is the
largest that the process had beside what its imports took. The first rows are an uncompressed CT of signed 16
bits with slope and intercept, the others a third of it compressed (JPEG 2000 and RLE, both lossless). The
ratios in the last line are those of the uncompressed series: seconds of the other / ours.

The node's time holds what it does with each received series: reading the headers, checking that it is of a
kind that is read, sorting the planes into stacks and checking the geometry, and decoding into modality units.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import highdicom
import imagecodecs
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from dicomnode.imaging.images.series import to_volume
from dicomnode.pipeline.folder import read_series

Volume = NDArray[np.float32]
CONTENDERS = ("node", "highdicom", "simpleitk")
LABELS = {"native": "uncompressed", "j2k": "JPEG 2000 lossless", "rle": "RLE lossless"}
SYNTAXES = {"native": ExplicitVRLittleEndian, "j2k": JPEG2000Lossless, "rle": RLELossless}
COMPRESSED_PART = 3  # decoding JPEG 2000 takes its time: a third of the slices shows as much
Row = dict[str, float | str]
HELD: list[SimpleITK.Image] = []  # an array view of an image does not keep it


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    if arguments.contender:
        print(json.dumps(run(arguments.contender, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        results = {}
        for kind in LABELS:
            is_native = kind == "native"
            folder = make_series(
                Path(name) / kind,
                kind=kind,
                slices=arguments.slices if is_native else arguments.slices // COMPRESSED_PART,
                size=arguments.size,
            )
            results[kind] = measure(folder, repeats=arguments.repeats if is_native else 2)
    print_table(results)
    best = {
        kind: {who: min(row["seconds"] for row in rows[who]) for who in rows}
        for kind, rows in results.items()
    }
    print(json.dumps(summary(arguments, results, best)))


def measure(folder: Path, *, repeats: int) -> dict[str, list[Row]]:
    """Run the contenders in turn, each in a fresh process, and compare their voxels."""
    rows: dict[str, list[Row]] = {who: [] for who in CONTENDERS}
    for _ in range(repeats):
        for who in CONTENDERS:
            command = [sys.executable, __file__, "--contender", who, "--folder", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows[who].append(json.loads(done.stdout.splitlines()[-1]))
    voxels = {row["voxels_sha256"] for found in rows.values() for row in found}
    if len(voxels) != 1:
        raise SystemExit(f"{folder.name}: the contenders read different voxels: {rows}")
    return rows


def run(contender: str, folder: Path) -> Row:
    """Make the volume once in this process."""
    read: Callable[[Path], Volume] = {"node": node, "highdicom": by_highdicom, "simpleitk": by_simpleitk}[
        contender
    ]
    before = peak_mb()
    began = time.perf_counter()
    volume = read(folder)
    seconds = time.perf_counter() - began
    peak = peak_mb() - before
    digest = hashlib.sha256(f"{volume.shape} {volume.dtype}".encode())
    for plane in volume:
        digest.update(np.ascontiguousarray(plane))
    return {"seconds": seconds, "peak_mb": peak, "voxels_sha256": digest.hexdigest()}


def node(folder: Path) -> Volume:
    """Read a series as the node does."""
    (datasets,) = read_series(folder).values()
    return to_volume(datasets).planes


def by_highdicom(folder: Path) -> Volume:
    """Read a series with highdicom, which takes data sets."""
    datasets = [dcmread(path) for path in folder.iterdir()]
    volume = highdicom.get_volume_from_series(datasets, dtype=np.float32)
    return in_ascending_order(volume.array, volume.affine[2, 0])


def by_simpleitk(folder: Path) -> Volume:
    """Read a series with SimpleITK's series reader."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = SimpleITK.Cast(reader.Execute(), SimpleITK.sitkFloat32)
    HELD.append(image)
    return in_ascending_order(SimpleITK.GetArrayViewFromImage(image), image.GetDirection()[8])


def in_ascending_order(volume: Volume, direction: float) -> Volume:
    """Turn a view so that the slices go up; nothing is copied."""
    return volume if direction > 0 else volume[::-1]


def peak_mb() -> float:
    """Give the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_series(folder: Path, *, kind: str, slices: int, size: int) -> Path:
    """Write a CT series of smooth shapes with noise, its files in no order."""
    folder.mkdir()
    random = np.random.default_rng(1)
    series = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    rows, columns = np.mgrid[:size, :size]
    names = random.permutation(slices)
    for number in range(slices):
        shapes = 1000 * np.sin(rows / 40 + number / 30) * np.cos(columns / 50)
        stored = (1000 + shapes + random.normal(0, 12, (size, size))).astype("<i2")
        ds = header(number, size=size, kind=kind)
        for keyword, uid in series.items():
            setattr(ds, keyword, uid)
        ds.PixelData = encode(stored, kind)
        ds["PixelData"].VR = "OW" if kind == "native" else "OB"
        ds["PixelData"].is_undefined_length = kind != "native"
        ds.save_as(folder / f"{names[number]:05d}.dcm", enforce_file_format=True)
    return folder


def encode(stored: NDArray[np.int16], kind: str) -> bytes:
    """Encode the pixels of one image."""
    if kind == "j2k":
        return encapsulate([imagecodecs.jpeg2k_encode(stored, level=0, reversible=True, codecformat="j2k")])
    if kind == "rle":
        planes = stored.view(np.uint8).reshape(*stored.shape, 2)
        segments = [imagecodecs.packbits_encode(planes[..., byte].tobytes()) for byte in (1, 0)]
        segments = [segment + bytes(len(segment) % 2) for segment in segments]
        return encapsulate(
            [struct.pack("<16L", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments)]
        )
    return stored.tobytes()


def header(number: int, *, size: int, kind: str) -> FileDataset:
    """Make the header of a CT image with about as many attributes as scanners write."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = SYNTAXES[kind]
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    for keyword, value in ATTRIBUTES.items():
        setattr(ds, keyword, value)
    ds.InstanceNumber = number + 1
    ds.ImagePositionPatient = [-180.0, -175.5, -300 + 1.25 * number]
    ds.SliceLocation = -300 + 1.25 * number
    ds.Rows = ds.Columns = size
    return ds


ATTRIBUTES: dict[str, object] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "StudyDate": "20260102",
    "SeriesDate": "20260102",
    "AcquisitionDate": "20260102",
    "ContentDate": "20260102",
    "StudyTime": "101112",
    "SeriesTime": "101213",
    "AcquisitionTime": "101214",
    "ContentTime": "101215",
    "AccessionNumber": "",
    "Modality": "CT",
    "Manufacturer": "Bench",
    "InstitutionName": "Bench",
    "ReferringPhysicianName": "",
    "StationName": "CT1",
    "StudyDescription": "Abdomen",
    "SeriesDescription": "Portal venous 1.25 mm",
    "ManufacturerModelName": "Bench CT",
    "PatientName": "Bench^Volume",
    "PatientID": "bench",
    "PatientBirthDate": "",
    "PatientSex": "",
    "BodyPartExamined": "ABDOMEN",
    "ScanOptions": "HELICAL MODE",
    "SliceThickness": "1.25",
    "KVP": "120",
    "DataCollectionDiameter": "500",
    "DeviceSerialNumber": "1",
    "SoftwareVersions": "1",
    "ProtocolName": "Abdomen",
    "ReconstructionDiameter": "360",
    "DistanceSourceToDetector": "949.1",
    "DistanceSourceToPatient": "541",
    "GantryDetectorTilt": "0",
    "TableHeight": "140",
    "RotationDirection": "CW",
    "ExposureTime": "800",
    "XRayTubeCurrent": "300",
    "Exposure": "240",
    "FilterType": "BODY FILTER",
    "GeneratorPower": "36000",
    "FocalSpots": "1.2",
    "ConvolutionKernel": "STANDARD",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": 2,
    "AcquisitionNumber": 1,
    "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "PositionReferenceIndicator": "XY",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelSpacing": ["0.703125", "0.703125"],
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 1,
    "WindowCenter": "40",
    "WindowWidth": "400",
    "RescaleIntercept": "-1024",
    "RescaleSlope": "1",
    "RescaleType": "HU",
}


def print_table(results: dict[str, dict[str, list[Row]]]) -> None:
    """Print seconds (best and median) and memory of each contender."""
    print(f"{'series':<22}{'contender':<12}{'best s':>9}{'median s':>10}{'peak MB':>9}{'of ours':>9}")
    for kind, rows in results.items():
        ours = min(row["seconds"] for row in rows["node"])
        for who, found in rows.items():
            seconds = [row["seconds"] for row in found]
            memory = min(row["peak_mb"] for row in found)
            print(
                f"{LABELS[kind]:<22}{who:<12}{min(seconds):>9.3f}{median(seconds):>10.3f}{memory:>9.0f}"
                f"{min(seconds) / ours:>8.2f}×"
            )


def summary(
    arguments: argparse.Namespace,
    results: dict[str, dict[str, list[Row]]],
    best: dict[str, dict[str, float]],
) -> dict[str, object]:
    """Gather the figures of the last line."""
    native = best["native"]
    return {
        "bench": "volume",
        "slices": arguments.slices,
        "size": arguments.size,
        "repeats": arguments.repeats,
        "ratios": {f"volume_vs_{who}": round(native[who] / native["node"], 2) for who in CONTENDERS[1:]},
        "ratios_compressed": {
            f"{kind}_vs_{who}": round(best[kind][who] / best[kind]["node"], 2)
            for kind in ("j2k", "rle")
            for who in CONTENDERS[1:]
        },
        "seconds": {
            kind: {who: round(value, 3) for who, value in found.items()} for kind, found in best.items()
        },
        "peak_mb": {
            kind: {who: round(min(row["peak_mb"] for row in rows[who])) for who in rows}
            for kind, rows in results.items()
        },
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Series on disk to a float32 volume, beside its peers.")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where to write (the disk to be measured)")
    parser.add_argument("--contender", choices=CONTENDERS, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
