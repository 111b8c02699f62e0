"""How accepted updates become the next release: pure functions, chosen by name from a literal table.

Every rule takes the newest release and the contributions and gives the merged weights together with
what became of each contribution. Contributions are sorted by update id first, so that a repeated merge is
bit-identical.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dicomnode import weights
from dicomnode.errors import UpdateRejectedError
from dicomnode.weights import Tensors

MAXIMUM_STALENESS: Final = 10
"""Releases that may lie between the base of an update and the newest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """An admitted update as a merge sees it."""

    update_id: str
    delta: Tensors  # tuned minus its base, float tensors, any subset of the model
    norm: float  # L2 of delta
    n_cases: int  # as reported by the site
    staleness: int  # version of the newest release minus version of the base; >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeRule:
    """The figures of a rule."""

    eta: float  # share of the combined update that enters the release
    clip_norm: float | None  # longer updates are shortened to it; None: never


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What became of one contribution."""

    update_id: str
    weight: float  # factor in front of its delta, everything included
    staleness: int
    clip_factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The weights of the next release and who is in them."""

    tensors: Tensors
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A rule and how many contributions it takes at once."""

    merge: Callable[[Tensors, Sequence[Contribution], MergeRule], Merged]
    minimum_members: int
    maximum_members: int


def staleness_factor(staleness: int) -> float:
    """Weigh an update by how old its base is: ``1 / sqrt(1 + tau)``, so that a fresh one counts in full.

    FedBuff (arXiv 2106.06639), with tau counted from the newest release before the merge.

    Raises
    ------
    UpdateRejectedError
        ``stale`` beyond :data:`MAXIMUM_STALENESS`, ``unknown_base`` for a base that is yet to come.
    """
    if staleness < 0:
        raise UpdateRejectedError("the update is based on a release that does not exist", code="unknown_base")
    if staleness > MAXIMUM_STALENESS:
        raise UpdateRejectedError(
            f"the update's base is {staleness} releases old, at most {MAXIMUM_STALENESS} are merged; "
            "fetch the newest release and train again",
            code="stale",
        )
    return 1.0 / math.sqrt(1.0 + staleness)


def clip_factor(norm: float, *, clip_norm: float | None) -> float:
    """Shorten an update to a length: ``min(1, clip_norm / norm)``."""
    if clip_norm is None or norm <= clip_norm:
        return 1.0
    return clip_norm / norm


def dafne_delta(head: Tensors, contributions: Sequence[Contribution], rule: MergeRule) -> Merged:
    """Add a share of one update to the newest release: ``head + eta * s * c * delta``.

    With ``eta = 0.5``, a fresh base (s = 1) and no clipping (c = 1) this is Dafne's published rule
    ``0.5 * head + 0.5 * upload``. On an older base Dafne would pull the release back towards that base;
    here only what the site learned is added, less the staler it is.

    Raises
    ------
    UpdateRejectedError
        See :func:`staleness_factor`; ``wrong_buffer`` for a number of contributions other than one.
    """
    if len(contributions) != 1:
        raise UpdateRejectedError(
            f"dafne_delta merges one update at a time, got {len(contributions)}", code="wrong_buffer"
        )
    update = contributions[0]
    clip = clip_factor(update.norm, clip_norm=rule.clip_norm)
    weight = rule.eta * staleness_factor(update.staleness) * clip
    share = Share(update_id=update.update_id, weight=weight, staleness=update.staleness, clip_factor=clip)
    return Merged(tensors=weights.apply(head, update.delta, scale=weight), shares=(share,))


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {"dafne_delta": Strategy(merge=dafne_delta, minimum_members=1, maximum_members=1)}
)


def merge(strategy: str, head: Tensors, contributions: Sequence[Contribution], rule: MergeRule) -> Merged:
    """Merge contributions into the newest release by the rule of that name.

    Parameters
    ----------
    strategy
        A name in :data:`STRATEGIES`.
    head
        Weights of the newest release; left unchanged.
    """
    in_order = sorted(contributions, key=lambda one: one.update_id)
    return STRATEGIES[strategy].merge(head, in_order, rule)
