"""One model fetched from the web: download, check, unpack, and put beside the other packages."""

import contextlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dicomnode import durable
from dicomnode.domain import ModelVersion, Sha256
from dicomnode.errors import InputError, ModelFormatError
from dicomnode.ml.imports import archive
from dicomnode.ml.imports.foreign import ImportOptions
from dicomnode.ml.imports.foreign import Progress as ImportProgress
from dicomnode.ml.imports.importer import Imported, import_model
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.pipeline.download import Downloaded, Limits, Progress, Source, download

_UNFINISHED: Final = ".new-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The folders of a site that a fetched model passes."""

    downloads: Path
    packages: Path
    out: Path | None = None  # of this package; None: its name in ``packages``


@dataclass(frozen=True, slots=True, kw_only=True)
class Unconfirmed:
    """A file that was fetched and not opened, because nobody said which digest it must have."""

    path: Path
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """A model that stands beside the others."""

    package: ModelPackage
    sha256: Sha256  # of the archive
    fetched_bytes: int
    was_there: bool
    archive: Path | None = None  # kept of somebody else's model: it may be imported with other options
    imported: Imported | None = None  # what a person should know of it


def pull(
    source: Source,
    places: Places,
    *,
    progress: Progress,
    import_progress: ImportProgress,
    limits: Limits | None = None,
) -> Pulled | Unconfirmed:
    """Fetch an archive and put the model in it beside the others; a second call finds it there.

    Without a digest the archive is fetched and left unopened: what came over a network is opened only after a
    person has said that it is what was published. It is not fetched again when the digest is given.

    Raises
    ------
    DicomNodeError
        As :func:`dicomnode.pipeline.download.download`, :func:`dicomnode.ml.imports.archive.unpack`,
        :func:`dicomnode.ml.model.package.read` and :func:`dicomnode.ml.imports.importer.import_model` raise;
        ``InputError`` also if another model stands in the way.
    """
    there = _already_there(source.sha256, places)
    if there is not None:
        return there
    fetched = download(source, places.downloads, limits=limits or Limits(), progress=progress)
    if source.sha256 is None:
        return Unconfirmed(path=fetched.path, sha256=fetched.sha256)
    with (
        durable.translated(places.downloads),
        tempfile.TemporaryDirectory(dir=places.downloads, prefix=_UNFINISHED) as temporary,
    ):
        unpacked = archive.unpack(fetched.path, Path(temporary) / "model")
        root, imported = _root_of_package(unpacked), None
        if root is None:
            root = Path(temporary) / "package"
            imported = import_model(unpacked, root, options=ImportOptions(), progress=import_progress)
        made = _install(root, places)
    _remember(fetched, made, places)
    if imported is None:
        with durable.translated(places.downloads):
            fetched.path.unlink()  # somebody else's may be imported again, with other options
    return Pulled(
        package=made,
        sha256=fetched.sha256,
        fetched_bytes=fetched.fetched_bytes,
        was_there=False,
        archive=fetched.path if imported else None,
        imported=replace(imported, package=made) if imported else None,
    )


def _already_there(sha256: Sha256 | None, places: Places) -> Pulled | None:
    """Look whether this archive has become a package before, and whether that still stands unchanged."""
    if sha256 is None:
        return None
    try:
        receipt = json.loads(_receipt(places.downloads, sha256).read_bytes())
        folder, version = Path(receipt["folder"]), ModelVersion(receipt["version"])
        wanted = places.out or places.packages / folder.name
        found = package.read(folder) if folder == wanted.absolute() else None
    except (OSError, ValueError, KeyError, TypeError, ModelFormatError):
        return None
    if found is None or found.card.version != version:
        return None
    return Pulled(package=found, sha256=sha256, fetched_bytes=0, was_there=True)


def _remember(fetched: Downloaded, made: ModelPackage, places: Places) -> None:
    """Note what became of an archive."""
    receipt = json.dumps({"folder": str(made.folder.absolute()), "version": made.card.version})
    with durable.translated(places.downloads):
        durable.keep(_receipt(places.downloads, fetched.sha256), receipt.encode(), mode=durable.PUBLIC)


def _receipt(downloads: Path, sha256: Sha256) -> Path:
    return downloads / f"{sha256}.receipt.json"


def _root_of_package(unpacked: Path) -> Path | None:
    """Find the folder with the files of a package: at the top, or the only one there."""
    inside = list(unpacked.iterdir())
    for folder in (unpacked, *inside):
        if (folder / package.PLAN_FILE).is_file() and (folder / package.WEIGHTS_FILE).is_file():
            return folder if folder == unpacked or len(inside) == 1 else None
    return None


def _install(root: Path, places: Places) -> ModelPackage:
    """Copy the four files of a checked package to their folder, which appears whole or not at all."""
    found = package.read(root)
    target = places.out or places.packages / found.plan.name
    if target.exists() and any(target.iterdir()):
        return _same(target, found)
    with durable.translated(target), contextlib.ExitStack() as stack:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_UNFINISHED))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        for name in package.FILES:
            shutil.copyfile(root / name, temporary / name)
            durable.sync_file(temporary / name)
        temporary.chmod(0o755)
        durable.sync_folder(temporary)
        temporary.rename(target)
        durable.sync_folder(target.parent)
    return package.read(target)


def _same(target: Path, found: ModelPackage) -> ModelPackage:
    """Accept what stands there if it is this very version."""
    try:
        standing = package.read(target)
    except ModelFormatError:
        standing = None
    if standing is None or standing.card.version != found.card.version:
        what = standing.card.version if standing else "something that is no package"
        raise InputError(
            f"{target} holds {what}, and {found.card.version} was fetched; move it away, or name another "
            "folder with --out"
        )
    return standing
