"""Segmentations by dcmqi (3D Slicer, MITK) and highdicom, as corrections of the cases in `written`."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

from dicomnode.imaging.images.series import SeriesVolume
from tests.conftest import need_program
from tests.interop.seg_cases import to_itk
from tests.interop.written import CARD, LABELS, OVERLAP, Labels, layers_of, masks_of

DCMQI_FORMS = ("binary", "binary, deflated", "labelmap", "labelmap, label IDs as numbers")
HIGHDICOM_FORMS = ("BINARY", "FRACTIONAL, probability", "FRACTIONAL, occupancy", "LABELMAP", "LABELMAP, RLE")
_TISSUE = {"CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue"}


def can_hold(form: str, case: str) -> bool:
    """Answer whether a form can hold a case: a label map has one label per voxel."""
    return case != OVERLAP or "labelmap" not in form.casefold()


def dcmqi(series: SeriesVolume, case: str, form: str, folder: Path) -> Dataset:
    """Let dcmqi convert the labels, each layer from a file of its own; Slicer leaves empty segments out."""
    layers = layers_of(case, series.image.spatial_shape)
    (folder / "images").mkdir(parents=True)
    for number, ds in enumerate(series.sources):
        ds.save_as(folder / "images" / f"{number}.dcm", enforce_file_format=True)
    pictures = [folder / f"{number}.nrrd" for number in range(len(layers))]
    for picture, layer in zip(pictures, layers, strict=True):
        SimpleITK.WriteImage(to_itk(layer, series.image), picture)
    (folder / "meta.json").write_text(json.dumps(_metadata(layers)))
    kind, _, detail = form.partition(", ")
    command = [
        need_program("itkimage2segimage"),
        *("--inputImageList", ",".join(map(str, pictures))),
        *("--inputDICOMDirectory", folder / "images"),
        *("--inputMetadata", folder / "meta.json"),
        *("--outputDICOM", folder / "theirs.dcm"),
        *("--segmentationType", kind),
        *("--compress", "deflate" if detail == "deflated" else "none"),
        *(["--useLabelIDAsSegmentNumber"] if "numbers" in detail else []),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return dcmread(folder / "theirs.dcm")


def highdicom(series: SeriesVolume, case: str, form: str, folder: Path) -> Dataset:
    """Let highdicom write all three segments, an emptied one without frames."""
    masks = masks_of(layers_of(case, series.image.spatial_shape))
    nothing = np.zeros(series.image.spatial_shape, bool)
    stacked = np.stack([masks.get(label, nothing) for label in LABELS], axis=-1)
    kind, _, detail = form.partition(", ")
    seg = hd.seg.Segmentation(
        source_images=[_complete(ds) for ds in series.sources],
        pixel_array=stacked.astype(np.float32 if kind == "FRACTIONAL" else np.uint8),
        segmentation_type=kind,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                number, label, codes.SCT.Organ, codes.SCT.Brain, hd.seg.SegmentAlgorithmTypeValues.MANUAL
            )
            for number, label in enumerate(LABELS, 1)
        ],
        fractional_type=detail.upper() if kind == "FRACTIONAL" else "PROBABILITY",
        series_instance_uid=generate_uid(),
        series_number=5,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=RLELossless if detail == "RLE" else ExplicitVRLittleEndian,
    )
    folder.mkdir(parents=True, exist_ok=True)
    seg.save_as(folder / "theirs.dcm")
    return dcmread(folder / "theirs.dcm")


def _metadata(layers: Sequence[Labels]) -> dict[str, object]:
    return {
        "ContentCreatorName": "Slicer",
        "ContentLabel": "DCMQI",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [
            [_segment(number) for number in np.unique(layer[layer != 0]).tolist()] for layer in layers
        ],
    }


def _segment(number: int) -> dict[str, object]:
    return {
        "labelID": number,
        "SegmentLabel": LABELS[number - 1],
        "SegmentDescription": LABELS[number - 1],
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": _TISSUE,
        "SegmentedPropertyTypeCodeSequence": _TISSUE,
        "recommendedDisplayRGBValue": list(CARD.segments[number - 1].rgb),
    }


def _complete(source: Dataset) -> Dataset:
    """The source with what highdicom insists on; some real series lack it."""
    for keyword in ("PatientBirthDate", "PatientSex"):
        if keyword not in source:
            setattr(source, keyword, "")
    if "SliceThickness" not in source:
        source.SliceThickness = 1
    return source
