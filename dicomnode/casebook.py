"""Training cases on disk: pseudonymous image, labels, and what a reader has reviewed.

Nothing here names a patient, a UID or a date: a case carries keyed hashes only, and the
database holds the one table that leads back. The side of a patient, training or hold-out, is a function of
the keyed hash and a threshold fixed when the casebook is made; it never changes. Where the same images come
under a second patient identifier, both count as one patient, so that copies never stand on both sides.

Layout::

    casebook.json                          marker: threshold of the split, and a check of the secret
    cases/<case id>/case.json              the case as it stands: what it is, and the SHA-256 of its arrays
    cases/<case id>/versions/<sha>.npz     arrays, named by their SHA-256; those that stand and those before
    cases/<case id>/versions/<sha>.json    the description that went with them
    patients/<patient key>                 the key of the patient that this one turned out to be, or its own
    images/<image key>                     the key of the patient who came with these images first
    turn.lock                              held by whoever changes cases

The folders `patients` and `images` only grow: a case that leaves may have been learned from, so that its
images stay on their side.
"""

import hashlib
import hmac
import io
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dicomnode import durable
from dicomnode.domain import SeriesInstanceUid, Sha256, Split
from dicomnode.errors import ConfigError, CorrectionError

MINIMUM_SECRET_BYTES = 16
_SPLIT_STEPS = 2**64
_CASE_ID = re.compile(r"[0-9a-f]{32}")
_ARRAYS = ("image", "affine", "labels", "reviewed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One reviewed series as the training sees it."""

    case_id: str  # from `Casebook.case_id`
    patient_key: str  # from `Casebook.patient_key`
    split: Split
    model_name: str
    image: npt.NDArray[np.float32]  # (slice, row, column), modality units
    affine: npt.NDArray[np.float64]  # 4x4, voxel index (slice, row, column) to LPS mm
    labels: npt.NDArray[np.uint8]  # (slice, row, column), class indices; 0 is background
    reviewed: npt.NDArray[np.float32]  # (label, slice), weight 0..1 of each slice; rows as `labels_known`
    labels_known: tuple[str, ...]  # labels that the readers' objects speak about


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseInfo:
    """What can be said of a case without reading its arrays."""

    case_id: str
    patient_key: str
    split: Split
    model_name: str
    labels_known: tuple[str, ...]
    shape: tuple[int, int, int]  # (slice, row, column)
    arrays_sha256: Sha256
    image_key: str  # keyed hash of the image: equal for copies of the same images


class _Marker(BaseModel):
    """``casebook.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["dicomnode casebook 1"]
    hold_out_threshold: Annotated[int, Field(ge=0, le=_SPLIT_STEPS)]
    secret_check: str


class _Description(BaseModel):
    """``case.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # the first format held a digest and a date more

    format: Literal["dicomnode case 1", "dicomnode case 2"]
    case_id: str
    patient_key: str
    split: Split
    model_name: str
    labels_known: tuple[str, ...]
    shape: tuple[int, int, int]
    arrays_sha256: Sha256
    image_key: str = ""


class Casebook:
    """The training cases of one site.

    Parameters
    ----------
    root
        Made when absent.
    secret
        Key of the hashes, at least 16 random bytes that never leave the site.
    hold_out_fraction
        Share of the patients that training never sees, 0..1; fixed when the casebook is made.

    Raises
    ------
    ConfigError
        The secret is too short, or it or the fraction are not those that the casebook was made with:
        either would move patients from one side to the other.
    """

    def __init__(self, root: Path, *, secret: bytes, hold_out_fraction: float) -> None:
        if len(secret) < MINIMUM_SECRET_BYTES:
            message = (
                f"the casebook's secret has {len(secret)} bytes, expected at least {MINIMUM_SECRET_BYTES}"
            )
            raise ConfigError(message)
        if not 0 <= hold_out_fraction <= 1:
            message = f"[training] hold_out_fraction is {hold_out_fraction}, expected 0 to 1"
            raise ConfigError(message)
        self._root = root
        self._secret = secret
        self._threshold = round(hold_out_fraction * _SPLIT_STEPS)
        self._check_marker()

    def patient_key(self, patient_id: str, issuer: str = "", *, study_instance_uid: str = "") -> str:
        """Hash a patient's identifier under the secret; the identifier itself is kept nowhere.

        Parameters
        ----------
        patient_id, issuer
            (0010,0020) and (0010,0021); outer blanks do not count.
        study_instance_uid
            Stands in for an absent identifier, so that at least one study stays on one side.

        Raises
        ------
        CorrectionError
            Neither identifier nor study is given.
        """
        if patient_id.strip():
            return self._keyed("patient", issuer.strip(), patient_id.strip())
        if study_instance_uid:
            return self._keyed("study", study_instance_uid)
        message = "no Patient ID and no Study Instance UID: the side of the patient cannot be fixed"
        raise CorrectionError(message)

    def patient_of(self, patient_key: str, image: npt.NDArray[np.float32]) -> str:
        """Tell which patient an image is of: the one whose copy of it is here already, else the one named.

        Anonymised copies, merged records and mistyped identifiers bring the same images under another
        identifier. That identifier is bound to the patient who was here first, now and for ever.

        Parameters
        ----------
        patient_key
            From `patient_key`.
        image
            (slice, row, column), modality units; compared voxel by voxel.

        Raises
        ------
        CorrectionError
            Both identifiers have had cases already, and on different sides.
        """
        own = self._bound(patient_key)
        first = self._note(self._folder_of_images() / self._image_key(image))
        other = self._bound(first or own)
        if other == own:
            return own
        if self._note(self._root / "patients" / own) is None:
            self._keep_note(self._root / "patients" / own, other)
            return self._bound(own)
        if self.split_of(own) is not self.split_of(other):
            message = (
                "the same images came as another patient's before, on the other side of training and "
                "hold-out; what either has taught cannot be taken back, so they are not learned from"
            )
            raise CorrectionError(message)
        return own

    def case_id(
        self, series_instance_uid: SeriesInstanceUid, *, stack: str = "", model_name: str = ""
    ) -> str:
        """Name the case of a stack of a series, for one model.

        Returns
        -------
            32 hexadecimal digits that do not lead back to the series without the secret.
        """
        return self._keyed("case", series_instance_uid, stack, model_name)[:32]

    def split_of(self, patient_key: str) -> Split:
        """Tell the side of a patient: the same for ever, whatever else is in the casebook."""
        step = int(self._keyed("split", patient_key)[:16], 16)
        return Split.HOLD_OUT if step < self._threshold else Split.TRAINING

    def add(self, case: Case) -> None:
        """Keep a case; one of the same id is replaced, and stays beside it until the next.

        Adding the same case again changes nothing. When this returns, the case survives a power cut.

        Raises
        ------
        CorrectionError
            The case contradicts itself, or is on the wrong side for its patient.
        SpoolFullError
            The disk had no room; the case that stood before still stands.
        """
        self._check_case(case)
        arrays = _encode_arrays(case)
        digest = Sha256(hashlib.sha256(arrays).hexdigest())
        description = _describe(case, digest, image_key=self._image_key(case.image))
        folder = self._folder(case.case_id)
        versions = folder / "versions"
        with durable.translated(folder):
            self._keep_note(self._folder_of_images() / description.image_key, case.patient_key)
            self._keep_note(self._root / "patients" / case.patient_key, case.patient_key)
            former = _standing(folder)
            if former == description:
                return
            versions.mkdir(parents=True, exist_ok=True)
            for made in (self._root / "cases", folder):
                durable.sync_folder(made)
            text = description.model_dump_json(indent=2).encode()
            durable.write(versions / f"{description.arrays_sha256}.npz", (arrays,))
            durable.write(versions / f"{description.arrays_sha256}.json", (text,))
            durable.sync_folder(versions)
            durable.write(folder / "case.json", (text,))
            durable.sync_folder(folder)
            stay = {one.arrays_sha256 for one in (former, description) if one}
            for path in versions.iterdir():  # older ones, and what a writer that died has left
                if path.stem not in stay:
                    path.unlink(missing_ok=True)

    def remove(self, case_id: str) -> None:
        """Let a case leave, with its earlier versions; one that is not there is no fault."""
        folder = self._folder(case_id)
        with durable.translated(folder):
            (folder / "case.json").unlink(missing_ok=True)
            if folder.exists():
                durable.sync_folder(folder)
                shutil.rmtree(folder)

    def read(self, case_id: str) -> Case:
        """Read a case as it stands.

        Raises
        ------
        CorrectionError
            No such case, or its files are not what was written.
        """
        folder = self._folder(case_id)
        description = _read_description(folder)
        path = folder / "versions" / f"{description.arrays_sha256}.npz"
        try:
            encoded = path.read_bytes()
        except OSError as error:
            message = f"the arrays of case {case_id} cannot be read: {error.strerror}"
            raise CorrectionError(message) from error
        if hashlib.sha256(encoded).hexdigest() != description.arrays_sha256:
            message = f"the arrays of case {case_id} are damaged: their SHA-256 is not the one written down"
            raise CorrectionError(message)
        return _case(description, _decode_arrays(encoded, case_id))

    def cases(self, *, model_name: str, split: Split | None = None) -> list[CaseInfo]:
        """List the cases of a model as they stand, on one side or on both, by case id.

        Raises
        ------
        CorrectionError
            A description is damaged.
        """
        return [
            info for info in self._infos() if info.model_name == model_name and split in (None, info.split)
        ]

    def count(self) -> int:
        """Count the cases of all models on both sides without reading them; it may be one too many."""
        return sum(1 for _ in (self._root / "cases").iterdir())

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Be the only one, of all processes, who makes cases anew from what the database says.

        A case is written before the transaction that counts on it; without turns two could undo each other.

        Raises
        ------
        ResourceError
            The lock cannot be had.
        """
        with durable.locked(self._root / "turn.lock"):
            yield

    def _infos(self) -> list[CaseInfo]:
        folders = sorted(path.parent for path in (self._root / "cases").glob("*/case.json"))
        # A case may leave between the two lines.
        return [_info(_read_description(folder)) for folder in folders if (folder / "case.json").exists()]

    def _bound(self, patient_key: str) -> str:
        """The key of the patient that this one turned out to be, or itself."""
        return self._note(self._root / "patients" / patient_key) or patient_key

    def _note(self, path: Path) -> str | None:
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _keep_note(self, path: Path, patient_key: str) -> None:
        """Keep the key of a patient under a name, for ever; who comes later changes nothing."""
        with durable.translated(path):
            if path.exists():
                return
            path.parent.mkdir(exist_ok=True)
            durable.sync_folder(self._root)
            durable.write_once(path, patient_key.encode())
            durable.sync_folder(path.parent)

    def _folder_of_images(self) -> Path:
        """Where it stands who came with which images; in a casebook from before, the cases in it tell."""
        folder = self._root / "images"
        if folder.is_dir():
            return folder
        made = self._root / "images.new"
        for info in self._infos():
            self._keep_note(self._root / "patients" / info.patient_key, info.patient_key)
            if info.image_key:
                self._keep_note(made / info.image_key, info.patient_key)
        with durable.translated(folder):
            made.mkdir(exist_ok=True)
            made.replace(folder)
            durable.sync_folder(self._root)
        return folder

    def _image_key(self, image: npt.NDArray[np.float32]) -> str:
        """Keyed hash of shape and voxels of an image."""
        digest = hashlib.sha256(np.ascontiguousarray(image, np.float32).tobytes()).hexdigest()
        return self._keyed("image", *(str(size) for size in image.shape), digest)

    def _check_marker(self) -> None:
        """Hold the settings equal to those of the day when the casebook was made."""
        marker = _Marker(
            format="dicomnode casebook 1",
            hold_out_threshold=self._threshold,
            secret_check=self._keyed("casebook"),
        )
        path = self._root / "casebook.json"
        with durable.translated(self._root):
            if not path.exists():
                (self._root / "cases").mkdir(parents=True, exist_ok=True)
                durable.write_once(path, marker.model_dump_json(indent=2).encode())
                durable.sync_folder(self._root)
            kept = _read_marker(path)
        if kept.secret_check != marker.secret_check:
            message = (
                f"the casebook {self._root} was made with another secret: patients would change sides. "
                "Put the former secret file back, or begin a new casebook in another folder"
            )
            raise ConfigError(message)
        if kept.hold_out_threshold != marker.hold_out_threshold:
            message = (
                f"[training] hold_out_fraction is {self._threshold / _SPLIT_STEPS:g}, but the casebook "
                f"{self._root} was made with {kept.hold_out_threshold / _SPLIT_STEPS:g} and a change would "
                "move patients between training and hold-out: set it back"
            )
            raise ConfigError(message)

    def _check_case(self, case: Case) -> None:
        expected = self.split_of(case.patient_key)
        shape = case.image.shape
        problems = {
            "the case is on the wrong side for its patient": case.split is not expected,
            "image and labels differ in shape": case.labels.shape != shape,
            "the image has not three axes": len(shape) != 3,
            "the affine is not 4x4": case.affine.shape != (4, 4),
            "there is not one weight per known label and slice": (
                case.reviewed.shape != (len(case.labels_known), *shape[:1])
            ),
            "the image has values that are not finite": not np.isfinite(case.image).all(),
        }
        for problem, is_so in problems.items():
            if is_so:
                message = f"case {case.case_id} cannot be kept: {problem}"
                raise CorrectionError(message)

    def _folder(self, case_id: str) -> Path:
        if _CASE_ID.fullmatch(case_id) is None:
            message = f"{case_id[:40]!r} is no case id: expected 32 hexadecimal digits"
            raise CorrectionError(message)
        return self._root / "cases" / case_id

    def _keyed(self, *parts: str) -> str:
        """Hash parts under the secret; each is preceded by its length, so no two lists look alike."""
        message = b"".join(f"{len(part)}:{part};".encode() for part in parts)
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def _describe(case: Case, arrays_sha256: Sha256, *, image_key: str) -> _Description:
    slices, rows, columns = case.image.shape
    return _Description(
        format="dicomnode case 2",
        case_id=case.case_id,
        patient_key=case.patient_key,
        split=case.split,
        model_name=case.model_name,
        labels_known=case.labels_known,
        shape=(slices, rows, columns),
        arrays_sha256=arrays_sha256,
        image_key=image_key,
    )


def _encode_arrays(case: Case) -> bytes:
    """Pack the arrays; equal arrays give equal bytes, since the archive carries no time."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        image=np.ascontiguousarray(case.image, dtype=np.float32),
        affine=np.ascontiguousarray(case.affine, dtype=np.float64),
        labels=np.ascontiguousarray(case.labels, dtype=np.uint8),
        reviewed=np.ascontiguousarray(case.reviewed, dtype=np.float32),
    )
    return buffer.getvalue()


def _decode_arrays(encoded: bytes, case_id: str) -> dict[str, npt.NDArray[np.generic]]:
    try:
        with np.load(io.BytesIO(encoded), allow_pickle=False) as archive:
            return {name: archive[name] for name in _ARRAYS}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        message = f"the arrays of case {case_id} cannot be read: {error}"
        raise CorrectionError(message) from error


def _case(description: _Description, arrays: dict[str, npt.NDArray[np.generic]]) -> Case:
    return Case(
        case_id=description.case_id,
        patient_key=description.patient_key,
        split=description.split,
        model_name=description.model_name,
        image=arrays["image"].astype(np.float32, copy=False),
        affine=arrays["affine"].astype(np.float64, copy=False),
        labels=arrays["labels"].astype(np.uint8, copy=False),
        reviewed=arrays["reviewed"].astype(np.float32, copy=False),
        labels_known=description.labels_known,
    )


def _info(description: _Description) -> CaseInfo:
    return CaseInfo(
        case_id=description.case_id,
        patient_key=description.patient_key,
        split=description.split,
        model_name=description.model_name,
        labels_known=description.labels_known,
        shape=description.shape,
        arrays_sha256=description.arrays_sha256,
        image_key=description.image_key,
    )


def _read_description(folder: Path) -> _Description:
    try:
        return _Description.model_validate_json((folder / "case.json").read_bytes())
    except FileNotFoundError as error:
        message = f"there is no case {folder.name}"
        raise CorrectionError(message) from error
    except ValidationError as error:
        message = f"the description of case {folder.name} is damaged ({error.error_count()} faults)"
        raise CorrectionError(message) from error


def _standing(folder: Path) -> _Description | None:
    """The description of the case that stands; None where there is none, or where it is damaged."""
    try:
        return _read_description(folder)
    except CorrectionError:
        return None


def _read_marker(path: Path) -> _Marker:
    try:
        return _Marker.model_validate_json(path.read_bytes())
    except ValidationError as error:
        message = f"{path} is damaged: restore it from a backup; without it patients could change sides"
        raise ConfigError(message) from error
