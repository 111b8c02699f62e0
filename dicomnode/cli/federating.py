"""``dicomnode federation``: membership of this site, and what it gives and takes."""

from dataclasses import dataclass
from time import monotonic, sleep
from typing import Annotated

import typer

from dicomnode import node
from dicomnode.cli.show import ConfigOption, JsonOption, console, notes, print_json, table
from dicomnode.domain import JobKind
from dicomnode.errors import ConfigError, DicomNodeError
from dicomnode.federation import client
from dicomnode.pipeline import adopt, push
from dicomnode.pipeline.tools import Tools
from dicomnode.settings import NodeSettings, load_node_settings
from dicomnode.site import opened_store, utc_now
from dicomnode.store.records import EnrolmentRecord, KnownRelease, OutboxState, OutboxUpdate

app = typer.Typer(
    no_args_is_help=True, help="Join a federation, exchange with it, and see what left this site."
)

_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """What one exchange did for one model."""

    model: str
    push: str  # in words
    update: OutboxUpdate | None  # the newest that this site made
    adoption: str  # in words
    release: KnownRelease | None  # the newest that this site has seen
    version_in_use: str


@app.command()
def enrol(
    code: Annotated[str, typer.Argument(help="One-time code from the coordinator.")],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            help="SHA-256 of the aggregator's CA certificate as the coordinator read it out; with it the "
            "certificate is fetched and written to federation.ca_file."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join the federation that federation.url names; the site's private key is made here and stays here."""
    settings = load_node_settings(config)
    if not settings.federation.url:
        raise ConfigError("federation.url is empty; set it to the address of the aggregator first")
    node.prepare(settings)
    joined = client.enrol(
        settings.federation.url,
        code,
        node_name=settings.node.site_name,
        key_file=node.federation_key(settings),
        ca_file=settings.federation.ca_file,
        fingerprint=fingerprint,
    )
    record = EnrolmentRecord(
        url=settings.federation.url,
        node_id=joined.node_id,
        aggregator_name=joined.aggregator_name,
        aggregator_key=joined.aggregator_key,
        enrolled_at=utc_now(),
    )
    with opened_store(settings) as store:
        store.federation.enrol(record)
    if as_json:
        print_json(joined)
        return
    console.print(f"This site is {joined.node_id} at {joined.aggregator_name}.")
    console.print("Compare both fingerprints with the coordinator before anything is exchanged:")
    console.print(f"  this site   {joined.node_fingerprint}", highlight=False)
    console.print(f"  aggregator  {joined.aggregator_fingerprint}", highlight=False)
    if not settings.federation.enabled:
        console.print("Set federation.enabled = true to take part.")


@app.command()
def sync(
    now: Annotated[
        bool, typer.Option("--now", help="Exchange at once instead of at the scheduled time.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option(help="How long to wait for the aggregator to judge what was sent.", min=0)
    ] = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what was learned here if policy allows, then take up the newest release if the gate accepts it.

    Without --now, only says what would be sent.
    """
    settings = load_node_settings(config)
    with node.opened_tools(settings) as tools:
        done = [
            _exchange(settings, tools, model, wait_s=wait_s) if now else _outlook(tools, model)
            for model in tools.model_names
        ]
    if as_json:
        print_json(done)
        return
    for one in done:
        console.print(f"[bold]{one.model}[/] ({one.version_in_use} in use)", highlight=False)
        console.print(f"  to the federation:   {one.push}", highlight=False, soft_wrap=True)
        console.print(f"  from the federation: {one.adoption}", highlight=False, soft_wrap=True)


@app.command()
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the membership of this site, every update that left it, and the releases that it has seen."""
    settings = load_node_settings(config)
    with opened_store(settings) as store:
        enrolment = store.federation.enrolment()
        updates = store.federation.updates()
        releases = [r for name in store.models.names() for r in store.federation.releases(name)]
    if as_json:
        print_json({"enrolment": enrolment, "updates": updates, "releases": releases})
        return
    if enrolment is None:
        console.print("This site is not enrolled at an aggregator; see `dicomnode federation enrol --help`.")
        return
    since = f"{enrolment.enrolled_at:%Y-%m-%d}"
    console.print(f"{enrolment.node_id} at {enrolment.aggregator_name}, {enrolment.url}, since {since}")
    console.print(
        table(
            "What left this site",
            ("made", "version", "on release", "bytes", "state", "answer"),
            (
                (u.created_at, u.model_version, u.base_release, u.blob_bytes, u.state, u.last_answer)
                for u in updates
            ),
        )
    )
    console.print(
        table(
            "Releases seen",
            ("model", "release", "seen", "here", "as version", "why"),
            ((r.family, r.version, r.seen_at, r.state, r.model_version, r.reason) for r in releases),
        )
    )


def _outlook(tools: Tools, model: str) -> Exchanged:
    found = tools.reason_apart() or push.find_contribution(model, tools)
    words = (
        found
        if isinstance(found, str)
        else f"{found.record.version} on release {found.base.version} could go"
    )
    return _exchanged(tools, model, pushed=words, adopted="asked for only with --now")


def _exchange(settings: NodeSettings, tools: Tools, model: str, *, wait_s: float) -> Exchanged:
    """Learn which releases there are, send, wait for the answer, and take up what is new."""
    with notes.status(f"exchanging {model} with the federation ..."):
        _adopt(settings, tools, model)
        pushed = _push(settings, tools, model, wait_s=wait_s)
        adopted = _adopt(settings, tools, model)
    return _exchanged(tools, model, pushed=pushed, adopted=adopted)


def _push(settings: NodeSettings, tools: Tools, model: str, *, wait_s: float) -> str:
    queued = push.enqueue_push(model, tools)
    if queued.digest is None:
        return queued.in_words
    row = node.run_job(settings, tools, JobKind.PUSH_UPDATE, queued.digest)
    deadline = monotonic() + wait_s
    while any(update.state is OutboxState.SENT for update in push.refresh_updates(tools)):
        if monotonic() > deadline:
            return f"{row.reason}; the aggregator has not judged it yet"
        sleep(_POLL_S)
    update = tools.store.federation.update_of(row.subject)
    return f"update {update.state}: {update.last_answer}" if update else row.reason


def _adopt(settings: NodeSettings, tools: Tools, model: str) -> str:
    try:
        queued = adopt.enqueue_adoption(model, tools)
    except DicomNodeError as error:
        return str(error)
    if queued.digest is None:
        return queued.in_words
    return node.run_job(settings, tools, JobKind.ADOPT_RELEASE, queued.digest).reason


def _exchanged(tools: Tools, model: str, *, pushed: str, adopted: str) -> Exchanged:
    updates = tools.store.federation.updates()
    return Exchanged(
        model=model,
        push=pushed,
        update=updates[-1] if updates else None,
        adoption=adopted,
        release=tools.store.federation.latest_release(model),
        version_in_use=tools.current_record(model).version,
    )
