"""Releases: the first of a model, the one after a merge, and the way back to an older one."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from dicomnode import weights
from dicomnode.domain import Sha256
from dicomnode.errors import ConfigError, ModelFormatError
from dicomnode.federation import manifest, signing
from dicomnode.federation.ledger.versions import FamilyRow, NewMember, NewVersion, VersionRow
from dicomnode.federation.manifest import BlobRef, ReleaseManifest
from dicomnode.federation.tools import Tools

RING_ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class NextRelease:
    """The content of a release that is about to be signed."""

    family: FamilyRow
    parent: VersionRow | None
    blob: BlobRef
    strategy: str
    members: tuple[NewMember, ...] = ()
    rollback_to: int | None = None


class _Stage(BaseModel):
    # The rest of a plan is the node's business; here only what decides whether weights may be averaged.
    model_config = ConfigDict(extra="ignore", frozen=True)
    network: JsonValue
    spacing_mm: JsonValue
    normalisation: JsonValue
    members: JsonValue


class _Plan(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    name: manifest.Family
    orientation: JsonValue
    axis_order: JsonValue
    region_classes: JsonValue
    stages: tuple[_Stage, ...]


class _PlanFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    weights_sha256: manifest.Digest
    plan: _Plan


def publish_package(folder: Path, tools: Tools) -> VersionRow:
    """Publish the weights of a model package: release 1 of its family, or the next one.

    Publishing the weights of the newest release again changes nothing.

    Raises
    ------
    ConfigError
        The folder is no model package, or the family has another network.
    """
    plan_file = _read_plan(folder / "plan.json")
    weights_path = folder / "weights.safetensors"
    family = FamilyRow(
        name=plan_file.plan.name,
        arch_id=_architecture(plan_file.plan),
        schema=_read_schema(weights_path, expected=Sha256(plan_file.weights_sha256)),
    )
    head = tools.ledger.versions.head(family.name)
    if head is not None and head.blob.sha256 == plan_file.weights_sha256:
        return head
    tools.ledger.versions.register_family(family, now=tools.now())
    blob = tools.blobs.copy_in(weights_path)
    release = NextRelease(family=family, parent=head, blob=blob, strategy="published")
    return _published(release, tools)


def roll_back(family_name: str, version: int, tools: Tools) -> VersionRow:
    """Publish an older release's weights as a new release, so that versions only ever grow.

    Raises
    ------
    ConfigError
        There is no such family or version, or it is the newest already.
    """
    family = tools.ledger.versions.family(family_name)
    target = tools.ledger.versions.get(family_name, version)
    head = tools.ledger.versions.head(family_name)
    if family is None or target is None or head is None:
        raise ConfigError(f"there is no release {version} of family {family_name!r}")
    if head.blob.sha256 == target.blob.sha256:
        raise ConfigError(f"release {head.version} of {family_name!r} has these weights already")
    release = NextRelease(
        family=family, parent=head, blob=target.blob, strategy="rollback", rollback_to=version
    )
    return _published(release, tools)


def publish(release: NextRelease, tools: Tools, *, actor: str) -> bool:
    """Sign a release and publish it together with the end of its members' wait.

    Returns
    -------
        ``False`` when another release took this parent first: compute again from the new head.
    """
    now = tools.now()
    statement = ReleaseManifest(
        family=release.family.name,
        version=1 if release.parent is None else release.parent.version + 1,
        parent_version=None if release.parent is None else release.parent.version,
        ring=RING_ALL,
        blob=release.blob,
        keys_digest=release.family.schema.digest,
        arch_id=release.family.arch_id,
        strategy=release.strategy,
        members=len(release.members),
        rollback_to=release.rollback_to,
        created=int(now.timestamp()),
        aggregator=tools.name,
    )
    payload = manifest.encode(statement)
    version = NewVersion(
        family=statement.family,
        version=statement.version,
        parent=release.parent,
        ring=statement.ring,
        strategy=statement.strategy,
        blob=release.blob,
        manifest_sha256=Sha256(hashlib.sha256(payload).hexdigest()),
        envelope=signing.seal(payload, payload_type=signing.RELEASE_TYPE, key=tools.key),
        members=release.members,
        actor=actor,
    )
    return tools.ledger.versions.publish(version, now=now)


def _published(release: NextRelease, tools: Tools) -> VersionRow:
    if not publish(release, tools, actor="operator"):
        raise ConfigError(
            f"another release of {release.family.name!r} appeared at the same moment; look at it and repeat"
        )
    head = tools.ledger.versions.head(release.family.name)
    if head is None:
        raise RuntimeError("a published release is not in the ledger")
    return head


def _read_plan(path: Path) -> _PlanFile:
    try:
        return _PlanFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path.parent} is no model package: {path.name} cannot be read") from error
    except ValidationError as error:
        raise ConfigError(f"{path} is no plan of a model: {error}") from error


def _architecture(plan: _Plan) -> Sha256:
    # The same digest as architecture_sha256 of ml, without any of ml: the aggregator builds no network.
    kept = plan.model_dump(mode="json", exclude={"name"})
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return Sha256(hashlib.sha256(canonical.encode()).hexdigest())


def _read_schema(path: Path, *, expected: Sha256) -> weights.Schema:
    try:
        if weights.sha256_of(path) != expected:
            raise ConfigError(f"{path} has another SHA-256 than plan.json says: {expected}")
        with path.open("rb") as stream:
            infos = weights.parse_header(stream, size=path.stat().st_size)
    except (OSError, ModelFormatError) as error:
        raise ConfigError(f"{path} holds no usable weights: {error}") from error
    return weights.schema_from_header(infos)
