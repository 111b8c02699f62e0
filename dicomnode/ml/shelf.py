"""The model packages of a site on disk, and the loaded ones that are kept warm."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from dicomnode import durable
from dicomnode.domain import ModelCard, ModelVersion
from dicomnode.errors import ModelFormatError
from dicomnode.ml.inference import engine
from dicomnode.ml.inference.engine import LoadedModel
from dicomnode.ml.model import package
from dicomnode.ml.model.package import ModelPackage
from dicomnode.ml.warm import USUAL_BUDGET_BYTES, WarmModels
from dicomnode.weights import Tensors

_UNFINISHED = ".new-"
_CHUNK = 1024 * 1024


class ModelShelf:
    """Versions under ``<root>/<name>/<12 digits of the weights' SHA-256>/``, never changed once there."""

    def __init__(self, root: Path, *, device: str = "auto", budget_bytes: int = USUAL_BUDGET_BYTES) -> None:
        self._root = root
        self._device = device
        self._warm = WarmModels(budget_bytes=budget_bytes)
        self._cards: dict[ModelVersion, ModelCard] = {}
        root.mkdir(parents=True, exist_ok=True)

    @property
    def device(self) -> str:
        """Where models run: "auto", "cpu" or a CUDA device."""
        return self._device

    def install(self, folder: Path) -> ModelPackage:
        """Copy a checked package onto the shelf; one that stands there already is left as it is.

        Raises
        ------
        ModelFormatError
            The package is incomplete or contradicts itself.
        SpoolFullError, ResourceError
            The disk had no room, or could not be written.
        """
        found = package.read(folder)
        return self._put(found.card.version, lambda target: _copy_files(folder, target))

    def add(self, parent: ModelPackage, tensors: Tensors, *, card_text: str) -> ModelPackage:
        """Put new weights for the plan and labels of a parent version onto the shelf; errors as `install`."""
        with (
            durable.translated(self._root),
            tempfile.TemporaryDirectory(dir=self._root, prefix=_UNFINISHED) as temporary,
        ):
            folder = Path(temporary) / "package"
            made = package.write(
                folder, plan=parent.plan, segments=parent.card.segments, tensors=tensors, card_text=card_text
            )
            return self._put(made.card.version, lambda target: _copy_files(folder, target))

    def package(self, version: ModelVersion) -> ModelPackage:
        """Read a version from the shelf."""
        folder = self.folder(version)
        if not folder.is_dir():
            raise ModelFormatError(f"model {version} is not on this site's shelf: {folder} is missing")
        return package.read(folder)

    def card(self, version: ModelVersion) -> ModelCard:
        """Tell a version's labels; read and checked once per process, since a version never changes."""
        if version not in self._cards:
            self._cards[version] = self.package(version).card
        return self._cards[version]

    def folder(self, version: ModelVersion) -> Path:
        """Where a version stands, whether or not it is there."""
        name, _, digest = version.partition("@")
        return self._root / name / digest

    def loaded(self, version: ModelVersion) -> LoadedModel:
        """Give a version ready to predict; see :class:`WarmModels` for how long it is kept."""
        return self._warm.get(version, lambda: engine.load(self.package(version), device=self._device))

    def sweep(self, *, older_than: timedelta, now: datetime) -> int:
        """Remove the unfinished folders that a crash left behind; gives how many there were."""
        limit = (now - older_than).timestamp()
        removed = 0
        for pattern in (f"{_UNFINISHED}*", f"*/{_UNFINISHED}*"):
            for folder in self._root.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # its maker has just put it into place
                    if folder.stat().st_mtime < limit:
                        shutil.rmtree(folder, ignore_errors=True)
                        removed += 1
        return removed

    def _put(self, version: ModelVersion, fill: Callable[[Path], None]) -> ModelPackage:
        """Fill a temporary folder and rename it into place, so that no half version is ever seen."""
        target = self.folder(version)
        if not target.is_dir():
            with durable.translated(target):
                self._fill_and_rename(target, fill)
        return package.read(target)

    def _fill_and_rename(self, target: Path, fill: Callable[[Path], None]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_UNFINISHED))
        try:
            fill(temporary)
            temporary.chmod(0o755)
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have put the same version there meanwhile
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in (target.parent, self._root):  # the database will say that the version is here
            durable.sync_folder(folder)


def _copy_files(source: Path, target: Path) -> None:
    """Copy the four files of a package and make them safe against a power cut."""
    for name in package.FILES:
        with (source / name).open("rb") as file:
            durable.write(target / name, iter(partial(file.read, _CHUNK), b""), mode=durable.PUBLIC)
    durable.sync_folder(target)
