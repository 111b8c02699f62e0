"""Publishing a model, going back, and one transaction per merge."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dicomnode import aggregator, weights
from dicomnode.domain import Sha256
from dicomnode.errors import ConfigError
from dicomnode.federation import intake, manifest, releases, signing
from dicomnode.federation.ledger import Ledger
from dicomnode.federation.ledger.versions import VersionRow
from dicomnode.federation.manifest import (
    BaseRelease,
    ReleaseManifest,
    UpdateManifest,
    UpdateState,
)
from dicomnode.federation.tools import Tools
from dicomnode.ml.model import plan as ml_plan
from tests.federation_builders import (
    FAMILY,
    NOW,
    Clock,
    aggregator_settings,
    toy_delta,
    toy_weights,
    write_blob,
    write_package,
)
from tests.unit.federation.test_signing import KEY, PUBLIC

NODE = "n-00000000000000aa"


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Tools]:
    with aggregator.open_tools(aggregator_settings(tmp_path / "centre"), now=Clock()) as opened:
        yield opened


def first_release(tools: Tools, tmp_path: Path) -> VersionRow:
    """Enrol a site and publish the toy model."""
    tools.ledger.nodes.invite("CODE", node_name="north", expires_at=NOW, now=NOW)
    tools.ledger.nodes.enrol("CODE", node_name="north", public_key=PUBLIC, node_id=NODE, now=NOW)
    return releases.publish_package(write_package(tmp_path / "toy"), tools)


@pytest.fixture
def release(tools: Tools, tmp_path: Path) -> VersionRow:
    return first_release(tools, tmp_path)


def opened(row: VersionRow, tools: Tools) -> ReleaseManifest:
    key = signing.public_key_of(tools.key)
    payload = signing.unseal(row.envelope, payload_type=signing.RELEASE_TYPE, public_key=key)
    return manifest.decode(payload, ReleaseManifest)


def announce(
    tools: Tools,
    number: int,
    *,
    delta: weights.Tensors,
    base: VersionRow,
    encoding: manifest.Encoding = "f32",
) -> str:
    """Put a signed update and its blob where the HTTP border would put them."""
    scratch = tools.blobs.path_of("00" * 32).parents[2] / f"update-{number}"
    blob = write_blob(scratch, delta, encoding=encoding)
    tools.ledger.uploads.open(NODE, Sha256(blob.sha256), size=blob.size, now=NOW)
    tools.blobs.write_part(NODE, Sha256(blob.sha256), offset=0, data=scratch.read_bytes())
    assert tools.blobs.finish(NODE, Sha256(blob.sha256))
    tools.ledger.uploads.finish(NODE, Sha256(blob.sha256), size=blob.size, now=NOW)
    update = UpdateManifest(
        update_id=manifest.new_update_id(NOW, randomness=number.to_bytes(10, "big")),
        node_id=NODE,
        family=FAMILY,
        base=BaseRelease(version=base.version, sha256=base.blob.sha256),
        encoding=encoding,
        blob=blob,
        keys_digest=opened(base, tools).keys_digest,
        arch_id=opened(base, tools).arch_id,
        n_cases=10,
        n_steps=100,
        local_epochs=1,
        app="0",
        aud="centre",
        iat=0,
        exp=1,
        nonce=f"{number:032x}",
    )
    payload = manifest.encode(update)
    tools.ledger.updates.announce(
        update,
        envelope=signing.seal(payload, payload_type=signing.UPDATE_TYPE, key=KEY),
        manifest_sha256=Sha256(hashlib.sha256(payload).hexdigest()),
        now=NOW,
    )
    return update.update_id


def state_of(update_id: str, tools: Tools) -> tuple[UpdateState, str]:
    row = tools.ledger.updates.get(update_id)
    assert row is not None
    return row.state, row.code


def newest(tools: Tools) -> VersionRow:
    head = tools.ledger.versions.head(FAMILY)
    assert head is not None
    return head


def test_a_model_package_becomes_release_1(release: VersionRow, tools: Tools) -> None:
    statement = opened(release, tools)
    assert (statement.version, statement.parent_version, statement.strategy) == (1, None, "published")
    assert (statement.ring, statement.aggregator, statement.family) == ("all", "centre", FAMILY)
    assert statement.keys_digest == weights.schema_of(toy_weights()).digest
    kept = weights.read(tools.blobs.path_of(statement.blob.sha256))
    assert weights.is_equal(kept, toy_weights())


def test_publishing_the_same_weights_again_changes_nothing(
    release: VersionRow, tools: Tools, tmp_path: Path
) -> None:
    assert releases.publish_package(write_package(tmp_path / "again"), tools) == release


def test_publishing_other_weights_of_the_same_network_gives_the_next_release(
    release: VersionRow, tools: Tools, tmp_path: Path
) -> None:
    other = weights.apply(toy_weights(), toy_delta())
    row = releases.publish_package(write_package(tmp_path / "other", tensors=other), tools)
    assert opened(row, tools).parent_version == release.version


def test_another_network_under_the_same_name_is_refused(
    release: VersionRow, tools: Tools, tmp_path: Path
) -> None:
    other = write_package(tmp_path / "other", tensors=toy_weights() | {"more": torch.zeros(1)})
    with pytest.raises(ConfigError, match="another network"):
        releases.publish_package(other, tools)


def test_a_folder_whose_weights_do_not_belong_to_its_plan_is_refused(tools: Tools, tmp_path: Path) -> None:
    folder = write_package(tmp_path / "toy")
    weights.write(folder / "weights.safetensors", toy_weights() | {"more": torch.zeros(1)})
    with pytest.raises(ConfigError, match="another SHA-256"):
        releases.publish_package(folder, tools)


def test_what_is_no_model_package_is_refused(tools: Tools, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model package"):
        releases.publish_package(tmp_path, tools)


def test_the_architecture_is_named_as_the_model_package_names_it(tools: Tools, tmp_path: Path) -> None:
    value = {
        "format_version": 2,
        "name": "hippocampus",
        "modalities": ["MR"],
        "orientation": "HPL",
        "stages": [
            {
                "spacing_mm": [1.0, 1.0, 1.5],
                "patch_shape": [32, 32, 32],
                "normalisation": {"method": "percentile_z_score"},
                "image_interpolation": {"order": 1},
                "score_interpolation": {"order": 1},
                "network": {
                    "kind": "dynunet",
                    "classes": 3,
                    "filters": [8, 16, 32],
                    "kernels": [[3, 3, 3]] * 3,
                    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                },
                "mirror_axes": [],
            }
        ],
    }
    folder = write_package(tmp_path / "toy")
    digest = weights.sha256_of(folder / "weights.safetensors")
    parsed = ml_plan.parse(json.dumps({"weights_sha256": digest, "plan": value}))
    (folder / "plan.json").write_text(ml_plan.render(parsed))
    row = releases.publish_package(folder, tools)
    assert opened(row, tools).arch_id == ml_plan.architecture_sha256(parsed.plan)


def test_going_back_is_a_new_release_of_old_weights(release: VersionRow, tools: Tools) -> None:
    announce(tools, 1, delta=toy_delta(), base=release)
    intake.work_off(tools)
    assert newest(tools).version == 2
    row = releases.roll_back(FAMILY, 1, tools)
    statement = opened(row, tools)
    assert (statement.version, statement.parent_version, statement.rollback_to) == (3, 2, 1)
    assert statement.blob == release.blob
    with pytest.raises(ConfigError, match="already"):
        releases.roll_back(FAMILY, 1, tools)


def test_updates_of_one_base_are_merged_one_after_the_other_with_their_staleness(
    release: VersionRow, tools: Tools
) -> None:
    ids = [announce(tools, n, delta=toy_delta(0.25 + n / 64), base=release) for n in range(3)]
    intake.work_off(tools)
    assert [state_of(one, tools) for one in ids] == [(UpdateState.MERGED, "")] * 3
    head = weights.read(tools.blobs.path_of(newest(tools).blob.sha256))
    # Staleness 0, 1, 2; with three norms known, 1.5 medians clip nothing.
    added = 0.5 * (0.25 + (0.25 + 1 / 64) / 2**0.5 + (0.25 + 2 / 64) / 3**0.5)
    assert head["conv.bias"].tolist() == pytest.approx([2.0 + added] * 4, abs=1e-6)
    assert head["norm.count"].tolist() == [7]


def test_an_update_longer_than_the_median_is_shortened_when_there_is_one(
    release: VersionRow, tools: Tools
) -> None:
    for number, size in enumerate((0.1, 0.11, 0.12)):
        announce(tools, number, delta=toy_delta(size), base=newest(tools))
        intake.work_off(tools)
    before = weights.read(tools.blobs.path_of(newest(tools).blob.sha256))
    announce(tools, 9, delta=toy_delta(0.33), base=newest(tools))
    intake.work_off(tools)
    after = weights.read(tools.blobs.path_of(newest(tools).blob.sha256))
    # Of the norms 0.10, 0.11, 0.12 and 0.33 (times sqrt 20) the median is 0.115; 1.5 * 0.115 = 0.1725.
    step = (after["conv.bias"] - before["conv.bias"]).tolist()
    assert step == pytest.approx([0.5 * 0.1725] * 4, abs=1e-6)


def test_a_base_too_old_is_refused_with_a_word_what_to_do(release: VersionRow, tools: Tools) -> None:
    for number in range(11):
        announce(tools, number, delta=toy_delta(0.25 + number / 512), base=newest(tools))
        intake.work_off(tools)
    late = announce(tools, 99, delta=toy_delta(0.3), base=release)
    intake.work_off(tools)
    assert state_of(late, tools) == (UpdateState.REJECTED, "stale")
    row = tools.ledger.updates.get(late)
    assert row is not None
    assert "train again" in row.reason


def test_a_refused_update_delays_nobody(release: VersionRow, tools: Tools) -> None:
    nan = announce(tools, 1, delta={"conv.bias": torch.full((4,), torch.nan)}, base=release)
    large = announce(tools, 2, delta=toy_delta(100.0), base=release)
    zero = announce(tools, 3, delta=toy_delta(0.0), base=release)
    good = announce(tools, 4, delta=toy_delta(), base=release)
    intake.work_off(tools)
    assert state_of(nan, tools) == (UpdateState.REJECTED, "not_finite")
    assert state_of(large, tools) == (UpdateState.QUARANTINED, "norm_outlier")
    assert state_of(zero, tools) == (UpdateState.REJECTED, "zero_update")
    assert state_of(good, tools) == (UpdateState.MERGED, "")
    assert newest(tools).version == 2


def test_a_merge_that_would_break_a_variance_is_not_released(release: VersionRow, tools: Tools) -> None:
    update = announce(tools, 1, delta={"norm.running_var": torch.full((4,), -2.5)}, base=release)
    intake.work_off(tools)
    assert state_of(update, tools) == (UpdateState.REJECTED, "merged_variance")
    assert newest(tools).version == 1


def test_a_bug_met_by_one_update_does_not_stop_the_next(release: VersionRow, tools: Tools) -> None:
    lost = announce(tools, 1, delta=toy_delta(0.1), base=release)
    row = tools.ledger.updates.get(lost)
    assert row is not None
    payload = signing.unseal(row.envelope, payload_type=signing.UPDATE_TYPE, public_key=PUBLIC)
    blob = manifest.decode(payload, UpdateManifest).blob
    tools.blobs.path_of(blob.sha256).unlink()  # a hand that should not have been there
    good = announce(tools, 2, delta=toy_delta(), base=release)
    intake.work_off(tools)
    assert state_of(lost, tools) == (UpdateState.QUARANTINED, "internal_error")
    assert state_of(good, tools) == (UpdateState.MERGED, "")


def test_updates_of_a_revoked_node_are_not_merged(release: VersionRow, tools: Tools) -> None:
    waiting = announce(tools, 1, delta=toy_delta(), base=release)
    assert tools.ledger.nodes.revoke(NODE, now=NOW) == 1
    intake.work_off(tools)
    assert state_of(waiting, tools) == (UpdateState.QUARANTINED, "node_revoked")
    assert newest(tools).version == 1


def test_mergers_in_parallel_merge_every_update_exactly_once(
    ledger: Ledger, tools: Tools, tmp_path: Path
) -> None:
    tools = dataclasses.replace(tools, ledger=ledger, rules=dataclasses.replace(tools.rules, clip_factor=0.0))
    release = first_release(tools, tmp_path)
    ids = [announce(tools, n, delta=toy_delta(0.25 + n / 512), base=release) for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: intake.work_off(tools), range(4)))
    assert [state_of(one, tools)[0] for one in ids] == [UpdateState.MERGED] * 8
    merged = [tools.ledger.updates.get(one) for one in ids]
    assert sorted(row.merged_version for row in merged if row and row.merged_version) == list(range(2, 10))
    assert newest(tools).version == 9
    assert tools.ledger.audit.verify().fault is None


def test_the_release_says_how_many_updates_are_in_it(release: VersionRow, tools: Tools) -> None:
    announce(tools, 1, delta=toy_delta(), base=release, encoding="bf16")
    intake.work_off(tools)
    statement = opened(newest(tools), tools)
    assert (statement.members, statement.strategy, statement.parent_version) == (1, "dafne_delta", 1)
