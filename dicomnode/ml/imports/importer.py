"""A model of another program becomes a model package."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dicomnode import durable
from dicomnode.errors import InputError, ModelFormatError
from dicomnode.ml.imports import archive, bundle, card, labels, nnunet, nnunet_folders
from dicomnode.ml.imports.foreign import ForeignModel, ImportOptions, Progress
from dicomnode.ml.imports.labels import DraftedLabels, UnknownName
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage

_UNFINISHED = ".importing-"
_PACKAGE_PATTERNS = (package.PLAN_FILE, f"*/{package.PLAN_FILE}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import gave."""

    package: ModelPackage
    unknown: tuple[UnknownName, ...]  # classes that a person must code
    notes: tuple[str, ...]  # whole sentences: what a person should know


def import_model(
    source: Path, out: Path, *, options: ImportOptions, progress: Progress, under_its_name: bool = False
) -> Imported:
    """Write a model package from an nnU-Net v2 model, a MONAI Bundle, or a package of dicomnode.

    Parameters
    ----------
    source
        A folder, or a zip of one. Nothing in it is executed.
    out
        Folder of the package; must not be there yet, or be empty. Appears complete or not at all.
    under_its_name
        The package becomes a folder in ``out``, called as the model is.

    Raises
    ------
    InputError
        No model that is known here, or one that needs what the node has not (``ModelFormatError``).
    ConfigError
        The network needs an extra that is not installed.
    ResourceError
        The disk had no room, or could not be written.
    """
    if not under_its_name:
        _check_free(out)
    parent = out if under_its_name else out.parent
    with durable.translated(out):
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=_UNFINISHED) as temporary:
            made = _import(source, Path(temporary), options=options, progress=progress)
            target = out / made.package.plan.name if under_its_name else out
            _check_free(target)
            _put(made.package.folder, target)
    return replace(made, package=package.read(target))


def _import(source: Path, work: Path, *, options: ImportOptions, progress: Progress) -> Imported:
    """Do all the work in a folder that nobody sees."""
    folder = _opened(source, work / "unpacked", progress)
    scratch, target = work / "weights", work / "package"
    scratch.mkdir()
    own = _only([path.parent for pattern in _PACKAGE_PATTERNS for path in folder.glob(pattern)])
    if own is not None:
        return Imported(package=_copy(own, target, options), unknown=(), notes=())
    model = _read(folder, source.name, scratch, options=options, progress=progress)
    drafted = _labels(model.class_names, model.data_set, options)
    progress("writing the package", 0, 1)
    made = package.write(
        target,
        model.plan,
        drafted.segments,
        model.tensors,
        card.render(model, drafted.segments),
        labels_text=labels.render(drafted),
    )
    progress("writing the package", 1, 1)
    return Imported(package=made, unknown=drafted.unknown, notes=model.notes)


def _only(found: Sequence[Path]) -> Path | None:
    """Give the one model in a folder, if there is one; two are not guessed between."""
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found[:5]))
        raise ModelFormatError(f"there is more than one model: {names}; give the folder of one of them")
    return found[0] if found else None


def _check_free(folder: Path) -> None:
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder} is there already; give another folder with --out, or remove it")


def _put(made: Path, target: Path) -> None:
    made.chmod(0o755)
    if target.is_dir():
        target.rmdir()
    made.rename(target)
    durable.sync_folder(target.parent)


def _opened(source: Path, unpacked: Path, progress: Progress) -> Path:
    if source.is_dir():
        return source
    if source.suffix.casefold() in {".pth", ".pt", ".ckpt", ".safetensors"}:
        raise ModelFormatError(
            f"{source.name} holds weights alone; give the folder that describes them, with plans.json "
            "(nnU-Net) or configs (MONAI Bundle)"
        )
    progress(f"unpacking {source.name}", 0, 1)
    folder = archive.unpack(source, unpacked)
    progress(f"unpacking {source.name}", 1, 1)
    return folder


def _read(
    folder: Path, shown: str, scratch: Path, *, options: ImportOptions, progress: Progress
) -> ForeignModel:
    if nnunet_folders.find(folder):
        return nnunet.read(folder, scratch, options=options, progress=progress)
    found = _only(bundle.find(folder))
    if found is not None:
        return bundle.read(found, scratch, options=options, progress=progress)
    if nnunet_folders.is_first_version(folder):
        raise ModelFormatError(
            f"{shown} is a model of nnU-Net v1 (plans.pkl), which is another program; only v2 is imported"
        )
    raise ModelFormatError(
        f"{shown} holds no model that is known here; looked for plans.json, dataset.json and fold_* (nnU-Net "
        "v2), configs/metadata.json (MONAI Bundle) and plan.json (dicomnode), up to three folders deep"
    )


def _labels(names: Mapping[int, str], data_set: str, options: ImportOptions) -> DraftedLabels:
    if options.labels is None:
        return labels.draft(names, context=data_set)
    segments = package.read_labels(options.labels)
    if len(segments) != len(names):
        raise ModelFormatError(
            f"{options.labels} names {len(segments)} segments; the model has {len(names)}: "
            f"{', '.join(names[index] for index in sorted(names))}"
        )
    return DraftedLabels(segments=segments, unknown=())


def _copy(own: Path, folder: Path, options: ImportOptions) -> ModelPackage:
    """Take over a package of dicomnode, with every check."""
    found = package.read(own)
    text = None if options.labels else (own / package.LABELS_FILE).read_text(encoding="utf-8")
    return package.write(
        folder,
        replace(found.plan, name=options.name or found.plan.name),
        package.read_labels(options.labels) if options.labels else found.card.segments,
        package.read_weights(found),
        (own / package.CARD_FILE).read_text(encoding="utf-8"),
        labels_text=text,
    )
