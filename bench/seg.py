"""A label map to each form of result on disk, beside highdicom and dcmqi: seconds and peak memory.

    python bench/seg.py [--slices 300] [--size 512] [--labels 20] [--repeats 3] [--folder DIR]

One CT series with organs of many sizes is made; then each contender runs in a process of its own, in
turn. The clock runs from the files of the series and the label array in memory to the Part 10 file on
disk: reading the source headers, measuring the labels and reading back what was written are part of it.
dcmqi reads the label map from an uncompressed NRRD file that the page cache holds. Every segmentation is
then read with pydicom alone and must hold the same voxels per label and slice. The figures are medians.
"Peak" is the resident memory of the whole process with the label array and, for the node, the decoded
image, whose mean and SD per label it takes; "added" is what the clocked part came to on top of that.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import dcmqi
import highdicom as hd
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from dicomnode.domain import Code, ModelCard, ModelVersion, Segment, Sha256
from dicomnode.imaging.images.series import SeriesVolume
from dicomnode.imaging.images.stacks import only_stack
from dicomnode.imaging.results import rtstruct_write, sc_write, seg_write, sr_write
from dicomnode.imaging.results.findings import Findings, Run, measure

ORGAN = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
RUN = Run(created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), revision="bench")
SPACING_MM = (1.5, 0.8, 0.8)
CHILD_PEAKS_MB: list[float] = []  # of a contender that is a program of its own


def main() -> None:
    """Measure, print the table and one JSON line."""
    arguments = _arguments()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.folder)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_series(folder, slices=arguments.slices, size=arguments.size, labels=arguments.labels)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.repeats):
            for name in CONTENDERS:
                runs[name].append(in_fresh_process(name, folder))
        check_voxels(folder)
    figures = {
        name: {key: round(median(run[key] for run in found), 3) for key in found[0]}
        for name, found in runs.items()
    }
    print_table(figures)
    print(json.dumps(summary(figures, arguments)))


def summary(figures: dict[str, dict[str, float]], arguments: argparse.Namespace) -> dict[str, object]:
    """Put the figures beside each other; ratios above 1 mean that the node was faster."""
    seconds = {name: values["seconds"] for name, values in figures.items()}
    return {
        "bench": "seg",
        "slices": arguments.slices,
        "size": arguments.size,
        "labels": arguments.labels,
        "repeats": arguments.repeats,
        "figures": figures,
        "ratios": {
            "seg_vs_highdicom": round(seconds["highdicom BINARY"] / seconds["node BINARY"], 2),
            "seg_vs_dcmqi": round(seconds["dcmqi BINARY"] / seconds["node BINARY"], 2),
            "labelmap_vs_highdicom": round(seconds["highdicom LABELMAP"] / seconds["node LABELMAP"], 2),
        },
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def in_fresh_process(name: str, folder: Path) -> dict[str, float]:
    """Run one contender and give its seconds, peak memory and bytes written."""
    command = [sys.executable, __file__, "--contender", name, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_contender(name: str, folder: Path) -> dict[str, float]:
    """Measure one contender in this process."""
    write = CONTENDERS[name](folder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the preparation
    before_mb = peak_mb()
    began = time.perf_counter()
    paths = write()
    seconds = time.perf_counter() - began
    peak = max(CHILD_PEAKS_MB) if CHILD_PEAKS_MB else peak_mb()
    return {
        "seconds": seconds,
        "peak_mb": peak,
        "added_mb": peak if CHILD_PEAKS_MB else peak - before_mb,
        "written_mb": sum(path.stat().st_size for path in paths) / 1e6,
    }


def peak_mb(process: str = "self") -> float:
    """Give the largest resident memory of a process since it was last reset; 0 when it has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) / 1024


def node(
    form: Callable[[Findings], Sequence[Dataset]], name: str
) -> Callable[[Path], Callable[[], list[Path]]]:
    """Prepare the node's writer of one form; the series' pixels are decoded, as in the pipeline."""

    def prepare(folder: Path) -> Callable[[], list[Path]]:
        labels, planes = np.load(folder / "labels.npy"), np.load(folder / "planes.npy")

        def write() -> list[Path]:
            stack = only_stack(headers(folder))
            image = hd.Volume(planes, stack.grid.affine, "PATIENT")
            series = SeriesVolume(image=image, planes=planes, stack=stack)
            findings = measure(image.with_array(labels), series=series, card=card(int(labels.max())))
            return save(form(findings), folder, name)

        return write

    return prepare


def highdicom(form: str, syntax: str) -> Callable[[Path], Callable[[], list[Path]]]:
    """Prepare highdicom's Segmentation of one form."""

    def prepare(folder: Path) -> Callable[[], list[Path]]:
        labels = np.load(folder / "labels.npy")

        def write() -> list[Path]:
            ds = hd.seg.Segmentation(
                source_images=headers(folder),
                pixel_array=labels,
                segmentation_type=form,
                segment_descriptions=descriptions(int(labels.max())),
                series_instance_uid=generate_uid(),
                series_number=1,
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer="bench",
                manufacturer_model_name="bench",
                software_versions="1",
                device_serial_number="1",
                transfer_syntax_uid=syntax,
                omit_empty_frames=True,
            )
            return save([ds], folder, f"highdicom {form}")

        return write

    return prepare


def itkimage2segimage(folder: Path) -> Callable[[], list[Path]]:
    """Prepare dcmqi's itkimage2segimage, which writes BINARY."""
    output = folder / "dcmqi BINARY.dcm"
    command = [
        str(Path(dcmqi.__file__).parent / "bin" / "itkimage2segimage"),
        *("--inputImageList", str(folder / "labels.nrrd"), "--inputDICOMDirectory", str(folder / "images")),
        *("--inputMetadata", str(folder / "dcmqi.json"), "--outputDICOM", str(output), "--skip", "1"),
    ]

    def write() -> list[Path]:
        run_program(command)
        return [output]

    return write


def run_program(command: Sequence[str]) -> None:
    """Run a contender that is a program of its own, and note its memory."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            CHILD_PEAKS_MB.append(peak_mb(str(process.pid)))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{Path(command[0]).name} ended with {process.returncode}")


CONTENDERS: dict[str, Callable[[Path], Callable[[], list[Path]]]] = {
    "node BINARY": node(lambda findings: seg_write.encode_binary(findings, run=RUN), "node BINARY"),
    "highdicom BINARY": highdicom("BINARY", ExplicitVRLittleEndian),
    "dcmqi BINARY": itkimage2segimage,
    "node LABELMAP": node(lambda findings: [seg_write.encode_label_map(findings, run=RUN)], "node LABELMAP"),
    "highdicom LABELMAP": highdicom("LABELMAP", RLELossless),
    "node SR": node(lambda findings: [sr_write.encode(findings, run=RUN, segs=())], "node SR"),
    "node RTSTRUCT": node(
        lambda findings: [ds for ds in [rtstruct_write.encode(findings, run=RUN)] if ds], "node RTSTRUCT"
    ),
    "node SC": node(lambda findings: sc_write.encode(findings, run=RUN), "node SC"),
}


def headers(folder: Path) -> list[Dataset]:
    """Read the headers of the series."""
    return [dcmread(path, stop_before_pixels=True) for path in sorted((folder / "images").iterdir())]


def save(objects: Sequence[Dataset], folder: Path, name: str) -> list[Path]:
    """Write objects as Part 10 files."""
    paths = [folder / f"{name}{number or ''}.dcm" for number in range(len(objects))]
    for path, ds in zip(paths, objects, strict=True):
        ds.save_as(path, enforce_file_format=True)
    return paths


def check_voxels(folder: Path) -> None:
    """Stop unless every segmentation holds the voxels of the label map, per label and slice."""
    labels = np.load(folder / "labels.npy")
    uids = [str(ds.SOPInstanceUID) for ds in headers(folder)]
    wanted = {
        (f"Organ {number}", uids[index], digest(plane == number))
        for index, plane in enumerate(labels)
        for number in np.unique(plane[plane != 0]).tolist()
    }
    for name in [name for name in CONTENDERS if name.endswith((" BINARY", " LABELMAP"))]:
        found = {triple for path in folder.glob(f"{name}*.dcm") for triple in read_masks(dcmread(path))}
        if found != wanted:
            raise SystemExit(f"{name} holds other voxels than the label map")


def read_masks(ds: Dataset) -> set[tuple[str, str, str]]:
    """Give label, SOP Instance UID of the slice and digest of the mask, for every mask that has voxels."""
    names = {item.SegmentNumber: str(item.SegmentLabel) for item in ds.SegmentSequence}
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    found = set()
    for frame, groups in zip(frames, ds.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = groups.DerivationImageSequence[0].SourceImageSequence
        for value in np.unique(frame[frame != 0]).tolist():
            is_binary = ds.BitsAllocated == 1
            number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber if is_binary else value
            found.add((names[number], str(source.ReferencedSOPInstanceUID), digest(frame == value)))
    return found


def digest(mask: NDArray[np.bool_]) -> str:
    """Digest a mask."""
    return hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()


def make_series(folder: Path, *, slices: int, size: int, labels: int) -> None:
    """Write a CT series, a label map of organs, and what dcmqi wants to know about them."""
    (folder / "images").mkdir()
    generator = np.random.default_rng(1)
    organs = make_labels((slices, size, size), labels, generator)
    planes = generator.normal(40, 20, organs.shape).astype(np.int16) + 10 * organs.astype(np.int16)
    np.save(folder / "labels.npy", organs)
    np.save(folder / "planes.npy", planes.astype(np.float32))
    common = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    frame_of_reference = generate_uid()
    for number, plane in enumerate(planes):
        ds = ct_slice(plane, number)
        ds.update({"FrameOfReferenceUID": frame_of_reference, **common})
        ds.save_as(folder / "images" / f"{number:05d}.dcm", enforce_file_format=True)
    picture = SimpleITK.GetImageFromArray(organs)
    picture.SetSpacing(SPACING_MM[::-1])
    SimpleITK.WriteImage(picture, str(folder / "labels.nrrd"), useCompression=False)
    (folder / "dcmqi.json").write_text(json.dumps(dcmqi_metadata(labels)))


def make_labels(shape: tuple[int, int, int], count: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draw uneven ellipsoids of 6 to 25 per cent of the volume's sides, all of them visible."""
    labels = np.zeros(shape, np.uint8)
    sides = np.array(shape)
    for number in range(1, count + 1):
        radii = generator.uniform(0.06, 0.25, 3) * sides * (1.5 if number == 1 else 1) / 1.5
        centre = generator.uniform(radii, sides - radii)
        low, high = (
            np.maximum(centre - radii, 0).astype(int),
            np.minimum(centre + radii + 1, sides).astype(int),
        )
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        z, y, x = ((np.arange(a, b) - c) / r for a, b, c, r in zip(low, high, centre, radii, strict=True))
        distance = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        waves = 0.1 * np.sin(7 * x + 5 * z[:, None, None]) * np.cos(6 * y[:, None])
        free = (labels[box] == 0) | (generator.random() < 0.3)
        labels[box][(distance < 0.85 + waves) & free] = number
    return labels


def ct_slice(plane: NDArray[np.int16], number: int) -> Dataset:
    """Make one CT image."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, generate_uid(), "CT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Bench^Seg", "bench", "", ""
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "010101", "", ""
    ds.ReferringPhysicianName, ds.Manufacturer, ds.InstanceNumber = "", "bench", number + 1
    ds.ImagePositionPatient = [0, 0, SPACING_MM[0] * number]
    ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], list(SPACING_MM[1:])
    ds.SliceThickness, ds.PositionReferenceIndicator = SPACING_MM[0], ""
    ds.Rows, ds.Columns = plane.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    ds.PixelData = plane.tobytes()
    return ds


def card(labels: int) -> ModelCard:
    """Make the card of a model with so many labels."""
    return ModelCard(
        name="bench",
        version=ModelVersion("bench@1"),
        weights_sha256=Sha256(64 * "0"),
        segments=tuple(
            Segment(
                class_index=number,
                segment_number=number,
                label=f"Organ {number}",
                category=ORGAN,
                type=Code(value=f"99{number}", scheme="99BENCH", meaning=f"Organ {number}"),
                type_modifier=None,
                region=None,
                rgb=(200, 10 * number % 256, 40),
            )
            for number in range(1, labels + 1)
        ),
    )


def descriptions(labels: int) -> list[hd.seg.SegmentDescription]:
    """Describe the segments for highdicom as the node does."""
    algorithm = hd.AlgorithmIdentificationSequence(
        name="bench", version="1", family=codes.cid7162.ArtificialIntelligence
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Organ {number}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=hd.sr.CodedConcept(f"99{number}", "99BENCH", f"Organ {number}"),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=generate_uid(),
            tracking_id=f"Organ {number}",
        )
        for number in range(1, labels + 1)
    ]


def dcmqi_metadata(labels: int) -> dict[str, object]:
    """Describe the segments for dcmqi."""
    category = {"CodeValue": ORGAN.value, "CodingSchemeDesignator": "SCT", "CodeMeaning": ORGAN.meaning}
    segments = [
        {
            "labelID": number,
            "SegmentLabel": f"Organ {number}",
            "SegmentDescription": f"Organ {number}",
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "bench",
            "SegmentedPropertyCategoryCodeSequence": category,
            "SegmentedPropertyTypeCodeSequence": {
                "CodeValue": f"99{number}",
                "CodingSchemeDesignator": "99BENCH",
                "CodeMeaning": f"Organ {number}",
            },
            "recommendedDisplayRGBValue": [200, 10 * number % 256, 40],
        }
        for number in range(1, labels + 1)
    ]
    return {
        "ContentCreatorName": "bench",
        "ContentLabel": "BENCH",
        "SeriesDescription": "bench",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "segmentAttributes": [segments],
    }


def print_table(figures: dict[str, dict[str, float]]) -> None:
    """Print seconds, peak memory and size."""
    print(f"{'writer':<22}{'seconds':>10}{'peak MB':>10}{'added MB':>10}{'file MB':>10}")
    for name, values in figures.items():
        memory = f"{values['peak_mb']:>10.0f}{values['added_mb']:>10.0f}"
        print(f"{name:<22}{values['seconds']:>10.2f}{memory}{values['written_mb']:>10.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Results of 20 labels on 300 slices beside highdicom and dcmqi."
    )
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--labels", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--contender", choices=list(CONTENDERS), default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
