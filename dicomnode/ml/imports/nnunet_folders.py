"""Where the parts of a trained nnU-Net model lie: configurations, folds, checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dicomnode.errors import ModelFormatError
from dicomnode.ml.imports.nnunet_dataset import DATASET_FILE
from dicomnode.ml.imports.nnunet_plans import PLANS_FILE

ALL_CASES = "all"
PREFERENCE = ("3d_cascade_fullres", "3d_fullres", "3d_lowres", "2d")
"""Which configuration is taken where several are there and none is asked for; others come after these."""

_DEEPEST = 3  # RESULTS/Dataset…/TRAINER__PLANS__CONFIGURATION
_FOLD = "fold_"
_CHECKPOINTS = ("final", "best", "latest")
_OLD_MARKS = ("plans.pkl", "*/plans.pkl", "*/*/plans.pkl")  # of nnU-Net v1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The folder of one configuration, and what its name says."""

    folder: Path
    trainer: str
    plans: str
    configuration: str  # empty where the folder has another name than nnU-Net gives


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One trained network."""

    name: str  # a number, or "all"
    path: Path  # of its checkpoint


def find(folder: Path, *, deepest: int = _DEEPEST) -> tuple[Trained, ...]:
    """Find the trained configurations in a folder or some levels below it."""
    patterns = ["*/" * depth + PLANS_FILE for depth in range(deepest + 1)]
    folders = sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})
    return tuple(
        _trained(one) for one in folders if (one / DATASET_FILE).is_file() and any(one.glob(f"{_FOLD}*/"))
    )


def is_first_version(folder: Path) -> bool:
    """Tell whether a folder holds a model of nnU-Net v1, which is another program."""
    return any(next(folder.glob(mark), None) for mark in _OLD_MARKS)


def choose(found: Sequence[Trained], name: str | None) -> Trained:
    """Take the configuration that is asked for, or the best that is there.

    Raises
    ------
    ModelFormatError
        There is none of that name, or more than one model.
    """
    wanted = [one for one in found if name is None or one.configuration in {name, ""}]
    if not wanted:
        there = ", ".join(sorted({one.configuration for one in found}))
        raise ModelFormatError(f"no configuration is called {name!r} there; found: {there}")
    ranked = sorted(wanted, key=lambda one: _rank(one.configuration))
    same = [one for one in ranked if one.configuration == ranked[0].configuration]
    if len(same) > 1:
        folders = ", ".join(str(Path(one.folder.parent.name) / one.folder.name) for one in same)
        raise ModelFormatError(f"there is more than one model: {folders}; give the folder of one of them")
    return ranked[0]


def beside(trained: Trained, name: str) -> Trained:
    """Find the model of another configuration of the same plans: the first pass of a cascade.

    Raises
    ------
    ModelFormatError
        Its folder is not beside the one of the cascade.
    """
    wanted = f"{trained.trainer}__{trained.plans}__{name}"
    siblings = find(trained.folder.resolve().parent, deepest=1)
    fitting = [one for one in siblings if (one.plans, one.configuration) == (trained.plans, name)]
    named = [one for one in fitting if one.trainer == trained.trainer] or fitting
    if len(named) != 1:
        missing = "is missing" if not named else "is there with several trainers"
        raise ModelFormatError(
            f"{trained.configuration} goes on from what {name} found, and the model {wanted} {missing} "
            f"beside {trained.folder.name}. Put it there (nnUNetv2_export_model_to_zip -c {name} "
            f"{trained.configuration}), or import another configuration"
        )
    return named[0]


def folds(trained: Trained, wanted: Sequence[str], checkpoint: str | None) -> tuple[Fold, ...]:
    """Find the checkpoints of the folds that are asked for, or of all numbered ones.

    Where none is numbered, the one that was trained on all cases.

    Raises
    ------
    ModelFormatError
        A fold is not there, or has no such checkpoint.
    """
    file = _checkpoint_file(trained, checkpoint)
    present = {path.parent.name.removeprefix(_FOLD): path for path in trained.folder.glob(f"{_FOLD}*/{file}")}
    numbered = sorted((name for name in present if name.isdecimal()), key=int)
    names = list(dict.fromkeys(wanted)) or numbered or [name for name in present if name == ALL_CASES]
    missing = [name for name in names if name not in present]
    if missing or not names:
        raise ModelFormatError(
            f"{trained.folder.name} has no {_FOLD}{missing[0] if missing else '*'}/{file}; found: "
            f"{', '.join(sorted(f'{_FOLD}{name}' for name in present)) or 'none'}"
        )
    return tuple(Fold(name=name, path=present[name]) for name in names)


def _trained(folder: Path) -> Trained:
    parts = folder.name.split("__")
    trainer, plans, configuration = parts if len(parts) == 3 else ("", "", "")
    return Trained(folder=folder, trainer=trainer, plans=plans, configuration=configuration)


def _rank(name: str) -> tuple[int, str]:
    return (PREFERENCE.index(name) if name in PREFERENCE else len(PREFERENCE), name)


def _checkpoint_file(trained: Trained, wanted: str | None) -> str:
    """Name the file of a checkpoint: the one asked for, or the last state of the training, or the best."""
    if wanted is not None:
        return f"checkpoint_{wanted}.pth" if wanted in _CHECKPOINTS else Path(wanted).name
    files = [f"checkpoint_{kind}.pth" for kind in _CHECKPOINTS]
    return next((file for file in files if any(trained.folder.glob(f"{_FOLD}*/{file}"))), files[0])
