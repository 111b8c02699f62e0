"""A site gives what it learned to a real aggregator over HTTPS, and takes up its releases."""

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep

import pytest
import torch

from dicomnode import aggregator, weights
from dicomnode.clock import tick_release
from dicomnode.domain import JobKind, JobState, ModelOrigin, ModelState, Split
from dicomnode.errors import AggregatorError, LeaseLostError, UpdateRejectedError
from dicomnode.federation import client, manifest
from dicomnode.federation.manifest import UpdateManifest
from dicomnode.ml.model.package import ModelPackage
from dicomnode.pipeline.adopt import adopt_release, enqueue_adoption
from dicomnode.pipeline.push import enqueue_push, find_contribution, push_update, refresh_updates
from dicomnode.settings import AggregatorSettings, FederationSettings, TrainingSettings
from dicomnode.store.records import EnrolmentRecord, ModelRecord, OutboxState, ReleaseState
from dicomnode.weights import Tensors
from tests.federation_builders import aggregator_settings
from tests.pipeline_builders import MODEL, Scene, mr_series, tiny_weights, viewer_seg, write_tiny


@dataclass(frozen=True, kw_only=True)
class Membership:
    """A site that is enrolled at a running aggregator."""

    scene: Scene
    centre: AggregatorSettings
    server: aggregator.Server

    @contextmanager
    def ledger(self) -> Iterator[sqlite3.Connection]:
        """The aggregator's own database, to do harm in."""
        path = self.centre.aggregator.data_dir / "aggregator.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            yield connection

    def publish(self, folder: Path, tensors: Tensors, **options: object) -> None:
        """Publish weights as the next release, as the coordinator would."""
        aggregator.publish(self.centre, write_tiny(folder, tensors=tensors, **options).folder)

    def adopt(self) -> str:
        """Ask for the newest release and take it up; gives the words of the job."""
        queued = enqueue_adoption(MODEL, self.scene.tools)
        if queued.digest is None:
            return queued.in_words
        adopt_release(self.scene.claim(JobKind.ADOPT_RELEASE), self.scene.tools)
        return self.scene.tools.store.jobs.find(JobKind.ADOPT_RELEASE, queued.digest).reason

    def learn(self) -> ModelRecord:
        """Train here on one patient; the outcome is put into use."""
        self.scene.draw(Split.TRAINING, seed=1)
        self.scene.draw(Split.HOLD_OUT, seed=2)
        self.scene.train()
        return self.scene.tools.current_record(MODEL)

    def push(self) -> None:
        """Queue what may leave, and send it."""
        queued = enqueue_push(MODEL, self.scene.tools)
        assert queued.digest is not None, queued.in_words
        push_update(self.scene.claim(JobKind.PUSH_UPDATE), self.scene.tools)

    def settled(self):
        """Wait until the aggregator has judged what was sent."""
        end = monotonic() + 20
        while monotonic() < end:
            updates = refresh_updates(self.scene.tools)
            if all(update.state is not OutboxState.SENT for update in updates):
                return updates
            sleep(0.05)
        raise TimeoutError(updates)


def released(scene: Scene) -> list[tuple[int, ReleaseState]]:
    return [(r.version, r.state) for r in scene.tools.store.federation.releases(MODEL)]


@contextmanager
def enrolled(scene: Scene, folder: Path, first: ModelPackage) -> Iterator[Membership]:
    """Enrol a site at an aggregator whose release 1 is a package."""
    centre = aggregator_settings(folder / "centre")
    aggregator.publish(centre, first.folder)
    with aggregator.open_tools(centre) as rooms, aggregator.Server(centre, rooms) as server:
        url, ca_file = f"https://localhost:{server.port}", centre.aggregator.data_dir / "ca.pem"
        joined = client.enrol(
            url,
            aggregator.create_enrolment_code(centre, "north"),
            node_name="north",
            key_file=scene.tools.federation_key,
            ca_file=ca_file,
        )
        scene.tools.store.federation.enrol(
            EnrolmentRecord(
                url=url,
                node_id=joined.node_id,
                aggregator_name=joined.aggregator_name,
                aggregator_key=joined.aggregator_key,
                enrolled_at=scene.clock(),
            )
        )
        settings = FederationSettings(
            enabled=True, url=url, ca_file=ca_file, minimum_patients=1, minimum_steps=1
        )
        yield Membership(scene=scene.with_changes(federation=settings), centre=centre, server=server)


@pytest.fixture
def member(scene: Scene, tmp_path: Path) -> Iterator[Membership]:
    """A site whose model, which finds nothing, is release 1 of its federation."""
    first = tiny_weights(background=1000.0)
    scene.use(first)
    with enrolled(scene, tmp_path, write_tiny(tmp_path / "first", tensors=first)) as found:
        yield found


# -- giving ----------------------------------------------------------------------------------------------


def test_what_was_learned_leaves_once_as_the_exact_difference(member):
    tools = member.scene.tools
    base = weights.read(tools.current_package(MODEL).weights_path)
    assert member.adopt().startswith("release 1 is in use")
    made = member.learn()

    member.push()

    (update,) = tools.store.federation.updates()
    assert (update.model_version, update.base_release) == (made.version, 1)
    delta = weights.read(tools.exchange / update.blob_path)
    assert {t.dtype for t in delta.values()} == {torch.bfloat16}
    tuned = weights.read(tools.shelf.package(made.version).weights_path)
    again = weights.apply(base, delta)
    for name, tensor in tuned.items():
        # bfloat16 keeps 8 bits of a difference.
        bound = (tensor - base[name]).abs() * 2**-8 + 1e-12
        assert ((again[name] - tensor).abs() <= bound + tensor.abs() * 2**-23).all(), name
    said = manifest.decode(update.manifest_json.encode(), UpdateManifest)
    assert (said.n_cases, said.n_steps, said.local_epochs) == (1, 5, 5)
    assert {c.code: c.cases for c in said.classes} == {"SCT:5366008:255549009": 1, "SCT:5366008:255551008": 1}

    (settled,) = member.settled()
    assert (settled.state, settled.last_answer) == (OutboxState.MERGED, "merged into release 2")
    enqueue_push(MODEL, tools)
    assert not tools.store.jobs.is_due({JobKind.PUSH_UPDATE}, member.scene.clock())


def test_a_repeat_after_a_crash_sends_the_same_update(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    enqueue_push(MODEL, tools)
    slow = member.scene.claim(JobKind.PUSH_UPDATE, owner="slow")
    member.scene.later()
    quick = member.scene.claim(JobKind.PUSH_UPDATE, owner="quick")

    push_update(quick, tools)
    (first,) = tools.store.federation.updates()
    with pytest.raises(LeaseLostError):
        push_update(slow, tools)

    (second,) = member.settled()
    assert (second.update_id, second.manifest_json) == (first.update_id, first.manifest_json)
    assert second.state is OutboxState.MERGED
    assert aggregator.status(member.centre).releases[0].version == 2


def test_a_difference_that_was_lost_from_the_disk_is_made_again(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    member.push()
    (update,) = member.settled()
    path = tools.exchange / update.blob_path
    before = path.read_bytes()
    path.unlink()
    job = tools.store.jobs.list(kind=JobKind.PUSH_UPDATE)[0]
    tools.store.jobs.enqueue(JobKind.PUSH_UPDATE, job.subject, "f" * 64, now=member.scene.clock())

    push_update(member.scene.claim(JobKind.PUSH_UPDATE), tools)

    assert path.read_bytes() == before


def test_a_dead_aggregator_leaves_the_update_in_the_outbox_until_it_is_asked_for_again(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    queued = enqueue_push(MODEL, tools)
    member.server.stop()
    job = member.scene.claim(JobKind.PUSH_UPDATE)

    with pytest.raises(AggregatorError):
        push_update(job, tools)
    tools.store.jobs.fail(job, now=tools.now(), reason="gave up after 10 attempts")  # as the worker does

    (update,) = tools.store.federation.updates()
    assert update.state is OutboxState.PENDING
    assert enqueue_push(MODEL, tools) == queued  # the next night
    assert tools.store.jobs.find(JobKind.PUSH_UPDATE, queued.digest).state is JobState.READY


def test_a_job_that_met_a_bug_is_not_begun_again_by_itself(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    queued = enqueue_push(MODEL, tools)
    job = member.scene.claim(JobKind.PUSH_UPDATE)
    tools.store.jobs.fail(job, now=tools.now(), reason="internal fault", traceback="Traceback ...")

    enqueue_push(MODEL, tools)

    assert tools.store.jobs.find(JobKind.PUSH_UPDATE, queued.digest).state is JobState.FAILED


def test_an_update_of_too_few_patients_or_steps_does_not_leave(member):
    member.adopt()
    member.learn()
    policy = member.scene.tools.federation

    for field, words in (("minimum_patients", "1 patients"), ("minimum_steps", "5 training steps")):
        strict = replace(member.scene.tools, federation=policy.model_copy(update={field: 100}))
        queued = enqueue_push(MODEL, strict)
        assert queued.digest is None
        assert words in queued.in_words
        assert "100" in queued.in_words


def test_one_release_is_contributed_to_once(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    member.push()
    member.scene.draw(Split.TRAINING, seed=3)
    member.scene.train()

    assert "already; it waits for the next" in str(find_contribution(MODEL, tools))


def test_nothing_leaves_that_was_not_learned_here_on_a_release(member):
    tools = member.scene.tools
    assert "nothing that was learned here" in enqueue_push(MODEL, tools).in_words
    member.learn()  # without ever having asked for a release
    assert "does not descend from a release" in enqueue_push(MODEL, tools).in_words


def test_an_update_that_the_aggregator_has_lost_does_not_hold_up_anything(member):
    tools = member.scene.tools
    member.adopt()
    member.learn()
    member.push()
    (update,) = member.settled()
    tools.store.federation.set_update_state(update.update_id, OutboxState.SENT, now=tools.now())
    with member.ledger() as ledger:
        ledger.execute("DELETE FROM merge_member")
        ledger.execute("DELETE FROM update_rec")

    tick_release(tools)

    (lost,) = tools.store.federation.updates()
    assert lost.state is OutboxState.ABANDONED
    assert "not_found" in lost.last_answer
    assert released(member.scene)[-1] == (2, ReleaseState.SEEN)  # the release was asked for all the same


# -- taking ----------------------------------------------------------------------------------------------


def test_the_release_that_is_in_use_is_noted_once_and_not_fetched(member):
    for _ in range(3):
        assert member.adopt().startswith("release 1 is in use")

    tools = member.scene.tools
    (release,) = tools.store.federation.releases(MODEL)
    assert release.state is ReleaseState.ADOPTED
    assert release.model_version == tools.current_record(MODEL).version
    events = [entry.event for entry in tools.store.audit.list(limit=100)]
    assert events.count("release_adopted") == 1
    assert list(tools.exchange.iterdir()) == []


def test_what_the_federation_merged_is_taken_up_with_its_lineage(member):
    tools = member.scene.tools
    member.adopt()
    learned = member.learn()
    member.push()
    member.settled()

    words = member.adopt()

    current = tools.current_record(MODEL)
    assert "release 2 as" in words
    assert (current.origin, current.release_version) == (ModelOrigin.RELEASE, 2)
    assert current.parent == learned.version
    assert tools.store.models.get(learned.version).state is ModelState.RETIRED
    assert released(member.scene) == [(1, ReleaseState.ADOPTED), (2, ReleaseState.ADOPTED)]
    # Half of what was learned is in it (Dafne's merge).
    first = tiny_weights(background=1000.0)
    tuned = weights.read(tools.shelf.package(learned.version).weights_path)
    merged = weights.read(tools.shelf.package(current.version).weights_path)
    for name, tensor in merged.items():
        half = first[name] + 0.5 * (tuned[name] - first[name])
        torch.testing.assert_close(tensor, half, rtol=1e-5, atol=1e-5)
    assert sorted(path.suffix for path in tools.exchange.iterdir()) == [".safetensors"]  # the update alone


def test_a_site_that_learned_more_does_not_fall_back_to_the_release_that_it_began_with(member):
    tools = member.scene.tools
    begun = tools.current_record(MODEL).version
    learned = member.learn()

    assert member.adopt().startswith("release 1 is in use")

    assert tools.current_record(MODEL).version == learned.version
    (release,) = tools.store.federation.releases(MODEL)
    assert (release.state, release.model_version) == (ReleaseState.ADOPTED, begun)


def test_a_repeat_after_a_crash_adopts_once(member, tmp_path):
    tools = member.scene.tools
    member.scene.draw(Split.HOLD_OUT, seed=2)
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    enqueue_adoption(MODEL, tools)
    slow = member.scene.claim(JobKind.ADOPT_RELEASE, owner="slow")
    member.scene.later()
    quick = member.scene.claim(JobKind.ADOPT_RELEASE, owner="quick")

    before = tools.current_record(MODEL).version
    with pytest.raises(LeaseLostError):
        adopt_release(slow, tools)
    assert tools.current_record(MODEL).version == before
    assert released(member.scene) == [(2, ReleaseState.SEEN)]
    adopt_release(quick, tools)

    assert tools.current_record(MODEL).release_version == 2
    assert released(member.scene) == [(2, ReleaseState.ADOPTED)]


def test_two_waiting_jobs_take_up_the_newest_release_once(member, tmp_path):
    tools = member.scene.tools
    member.scene.draw(Split.HOLD_OUT, seed=2)
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    enqueue_adoption(MODEL, tools)
    member.publish(tmp_path / "third", tiny_weights(seed=5))
    enqueue_adoption(MODEL, tools)

    for _ in range(2):
        adopt_release(member.scene.claim(JobKind.ADOPT_RELEASE), tools)

    assert tools.current_record(MODEL).release_version == 3
    assert released(member.scene)[-1] == (3, ReleaseState.ADOPTED)


def test_without_hold_out_cases_a_release_waits_for_a_person(member, tmp_path):
    tools = member.scene.tools
    before = tools.current_record(MODEL).version
    member.publish(tmp_path / "second", tiny_weights(seed=3))

    words = member.adopt()

    assert "inconclusive" in words
    assert tools.current_record(MODEL).version == before
    (release,) = tools.store.federation.releases(MODEL)
    assert release.state is ReleaseState.INCONCLUSIVE
    assert tools.store.models.get(release.model_version).state is ModelState.INCONCLUSIVE
    # A person promotes it; the next poll notes that it is in use.
    tools.store.models.promote(release.model_version, now=tools.now(), by="chief")
    assert member.adopt().startswith("release 2 is in use")
    assert released(member.scene) == [(2, ReleaseState.ADOPTED)]


def test_a_release_that_is_worse_here_is_refused_and_not_tried_again(member, tmp_path):
    scene = member.scene
    better = scene.use(tiny_weights(seed=4)).version
    series = mr_series(patient_id=scene.patient_on(Split.HOLD_OUT))
    scene.segment(series)
    scene.correct(viewer_seg(series, scene.found(series)))  # a reader finds it perfect
    member.publish(tmp_path / "second", tiny_weights(background=500.0))  # finds nothing

    words = member.adopt()

    assert "refused" in words
    assert "collapses in 1 of 1 cases" in words
    assert scene.tools.current_record(MODEL).version == better
    assert released(scene)[-1] == (2, ReleaseState.REFUSED)
    enqueue_adoption(MODEL, scene.tools)
    assert not scene.tools.store.jobs.is_due({JobKind.ADOPT_RELEASE}, scene.clock())


def test_a_rollback_of_the_federation_brings_back_an_older_local_version(member, tmp_path):
    tools = member.scene.tools
    first = tools.current_record(MODEL).version
    strict = replace(tools, training=TrainingSettings(minimum_hold_out_cases=1, epsilon_dice=1.0))
    easy = replace(member, scene=replace(member.scene, tools=strict))
    member.scene.draw(Split.HOLD_OUT, seed=2)
    easy.adopt()
    member.publish(tmp_path / "second", tiny_weights(background=999.0))
    assert "release 2" in easy.adopt()
    second = tools.current_record(MODEL)
    assert second.release_version == 2
    aggregator.roll_back(member.centre, MODEL, 1)

    words = easy.adopt()

    assert "release 3" in words
    current = tools.current_record(MODEL)
    assert current.version == first
    assert current.origin is ModelOrigin.INSTALLED  # its lineage is what it was
    assert tools.store.models.get(second.version).state is ModelState.RETIRED
    assert released(member.scene)[-1] == (3, ReleaseState.ADOPTED)


def test_a_person_s_rollback_is_not_undone_by_the_next_poll(member, tmp_path):
    tools = member.scene.tools
    first = tools.current_record(MODEL).version
    member.scene.draw(Split.HOLD_OUT, seed=2)
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    member.adopt()
    tools.store.models.rollback(MODEL, now=tools.now(), by="chief")

    enqueue_adoption(MODEL, tools)

    assert not tools.store.jobs.is_due({JobKind.ADOPT_RELEASE}, member.scene.clock())
    assert tools.current_record(MODEL).version == first


def test_a_release_for_another_voxel_spacing_is_refused_before_it_is_fetched(scene, tmp_path):
    coarse = write_tiny(tmp_path / "coarse", tensors=tiny_weights(seed=5), spacing_mm=2.0)
    refused = pytest.raises(UpdateRejectedError, match="another network, voxel spacing")
    with enrolled(scene, tmp_path, coarse) as member, refused:
        member.adopt()

    (release,) = scene.tools.store.federation.releases(MODEL)
    assert release.state is ReleaseState.REFUSED
    assert "voxel spacing" in release.reason


def test_a_tampered_release_is_refused(member, tmp_path):
    tools = member.scene.tools
    before = tools.current_record(MODEL).version
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    with member.ledger() as ledger:  # as somebody who broke in there could
        ((sealed,),) = ledger.execute("SELECT envelope FROM model_version WHERE version = 2")
        envelope = json.loads(sealed)
        statement = base64.b64decode(envelope["payload"]).replace(b'"published"', b'"dafnedlta"')
        envelope["payload"] = base64.b64encode(statement).decode()
        ledger.execute(
            "UPDATE model_version SET envelope = ? WHERE version = 2", (json.dumps(envelope).encode(),)
        )

    with pytest.raises(UpdateRejectedError) as caught:
        enqueue_adoption(MODEL, tools)

    assert caught.value.code == "bad_signature"
    assert tools.store.federation.releases(MODEL) == []
    assert tools.current_record(MODEL).version == before


def test_weights_that_are_not_those_of_the_release_are_refused(member, tmp_path):
    tools = member.scene.tools
    before = tools.current_record(MODEL).version
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    enqueue_adoption(MODEL, tools)
    (release,) = tools.store.federation.releases(MODEL)
    (blob,) = [p for p in member.centre.aggregator.data_dir.rglob(f"*{release.blob_sha256}*") if p.is_file()]
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(content)

    with pytest.raises(UpdateRejectedError) as caught:
        adopt_release(member.scene.claim(JobKind.ADOPT_RELEASE), tools)

    assert caught.value.code == "digest_mismatch"
    assert released(member.scene) == [(2, ReleaseState.REFUSED)]
    assert tools.current_record(MODEL).version == before
    assert list(tools.exchange.iterdir()) == []


def test_a_release_older_than_one_seen_before_is_refused(member, tmp_path):
    tools = member.scene.tools
    member.publish(tmp_path / "second", tiny_weights(seed=3))
    enqueue_adoption(MODEL, tools)
    with closing(sqlite3.connect(member.scene.folder / "node.sqlite")) as database:
        database.execute("UPDATE known_release SET version = 9")
        database.commit()

    with pytest.raises(UpdateRejectedError) as caught:
        enqueue_adoption(MODEL, tools)

    assert caught.value.code == "downgrade"


def test_a_site_that_takes_no_part_says_so(scene, member):
    tools = replace(member.scene.tools, federation=FederationSettings())
    elsewhere = FederationSettings(enabled=True, url="https://elsewhere.invalid")

    assert "federation.enabled = false" in enqueue_adoption(MODEL, tools).in_words
    assert "not enrolled" in enqueue_push(MODEL, replace(tools, federation=elsewhere)).in_words


def test_a_model_that_the_aggregator_does_not_know_does_not_hold_up_the_others(member):
    (route,) = member.scene.tools.routes
    unknown = route.model_copy(update={"name": "another", "model": "another"})
    tools = replace(member.scene.tools, routes=(unknown, route))
    assert tools.model_names == ("another", MODEL)

    tick_release(tools)

    assert released(member.scene) == [(1, ReleaseState.ADOPTED)]


def test_a_dead_aggregator_is_no_fault_of_the_clock(member):
    member.server.stop()

    tick_release(member.scene.tools)

    assert released(member.scene) == []
