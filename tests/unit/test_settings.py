"""Settings: defaults, strictness, and messages that an administrator can act on."""

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dicomnode.conditions import Range
from dicomnode.configfile import Key, Section, keys
from dicomnode.configtraining import TrainingSettings, Weekday
from dicomnode.domain import Destination, ImageKind, Plane, ResultForm
from dicomnode.errors import ConfigError
from dicomnode.settings import (
    AggregatorSettings,
    NodeSettings,
    RouteSettings,
    WorkSettings,
    load_aggregator_settings,
    load_node_settings,
    shipped_models_folder,
)

CONFIG = Path(__file__).resolve().parents[2] / "config"
TWO_PEERS = """
[[routes]]
name = "brain"
model = "hippocampus"
{route}
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "pacs.example.org"
port = 104
[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "192.0.2.1"
port = 11112
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "node.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_node_settings(path)
    return str(caught.value).replace(str(path), "node.toml")


def test_the_node_file_in_the_repository_holds_the_embedded_defaults() -> None:
    assert load_node_settings(CONFIG / "node.toml") == load_node_settings(None)


def test_the_aggregator_file_in_the_repository_holds_the_embedded_defaults() -> None:
    assert load_aggregator_settings(CONFIG / "aggregator.toml") == load_aggregator_settings(None)


@pytest.mark.parametrize(("model", "name"), [(NodeSettings, "node"), (AggregatorSettings, "aggregator")])
def test_the_files_in_the_repository_show_every_key(model: type[Section], name: str) -> None:
    text = (CONFIG / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"^# (\[\[destinations]]|\w+ = )", r"\1", text, flags=re.MULTILINE)
    content = tomllib.loads(text)
    for key in keys(model):
        table = content
        for part in key.name.split("."):
            assert part.removesuffix("[]") in table, key.name
            inner = table[part.removesuffix("[]")]
            table = inner[0] if part.endswith("[]") else inner


def test_the_configurations_that_the_documents_show_can_be_used(tmp_path: Path) -> None:
    pages = [CONFIG.parent / "README.md", *(CONFIG.parent / "docs").glob("*.md")]
    blocks = [
        block for page in pages for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    shown = [block for block in blocks if not block.startswith("format")]  # those are labels.toml
    assert len(shown) >= 3
    for block in shown:
        load_node_settings(written(tmp_path, block))


def test_every_key_has_a_meaning() -> None:
    described: list[Key] = [*keys(NodeSettings), *keys(AggregatorSettings)]
    assert [key.name for key in described if not key.meaning] == []


def test_an_unknown_key_is_named_with_the_nearest_known_one(tmp_path: Path) -> None:
    said = complaint(tmp_path, "[scp]\nprot = 104\n")
    assert said == 'node.toml: unknown key "scp.prot"; did you mean "scp.port"?'


def test_a_key_in_the_wrong_section_is_pointed_home(tmp_path: Path) -> None:
    said = complaint(tmp_path, '[scp]\ndata_dir = "x"\n')
    assert said == 'node.toml: unknown key "scp.data_dir"; did you mean "node.data_dir"?'


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path, "[wrok]\n") == 'node.toml: unknown key "wrok"; did you mean "work"?'


def test_an_unknown_key_like_nothing_gets_the_list_of_sections(tmp_path: Path) -> None:
    said = complaint(tmp_path, "[qqqqqq]\n")
    assert said.startswith('node.toml: unknown key "qqqqqq"; known sections: corrections, database,')


def test_an_unknown_key_in_a_list_of_tables_carries_its_index(tmp_path: Path) -> None:
    said = complaint(tmp_path, '[[routes]]\nname = "a"\nmodel = "b"\nmodallity = ["MR"]\n')
    assert said == 'node.toml: unknown key "routes[0].modallity"; did you mean "routes[0].where.modality"?'


def test_all_faults_of_a_file_are_reported_together(tmp_path: Path) -> None:
    said = complaint(tmp_path, "[scp]\nprot = 1\nport = 70000\n[work]\ntick_s = 0\n")
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[scp]\nport = 70000\n", "scp.port is 70000; allowed: a TCP port, 1 to 65535; 0 takes a free one"),
        ('[scp]\nport = "104"\n', 'scp.port is "104"; allowed: a TCP port, 1 to 65535; 0 takes a free one'),
        ("[work]\ntick_s = 0\n", "work.tick_s is 0; allowed: a number, above 0"),
        ("[work]\ntick_s = nan\n", "work.tick_s is NaN; allowed: a number, above 0"),
        ("[training]\nenabled = 1\n", "training.enabled is 1; allowed: true or false"),
        ('[node]\nlog_format = "xml"\n', 'node.log_format is "xml"; allowed: "console" or "json"'),
        ("[node]\nlog_level = 2026-01-01\n", 'node.log_level is "2026-01-01"; allowed: "debug"'),
        ('[training]\nwindow = "2-5"\n', 'training.window is "2-5"; allowed: two times of day such as'),
        ('[federation]\nurl = "http://x"\n', 'federation.url is "http://x"; allowed: an https:// URL'),
        ("scp = 3\n", '"scp" is a section: write it as [scp] with keys below it'),
        ('[[routes]]\nname = "a"\n', '"routes[0].model" is missing; allowed: 1 to 64 letters'),
        ('[work]\noff_peak = "8-10"\n', 'work.off_peak is "8-10"; allowed: two times of day such as'),
    ],
)
def test_a_value_that_is_not_allowed_is_answered_with_what_is(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert complaint(tmp_path, text).startswith(f"node.toml: {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("slices = { min = 20, max = 10 }", "where.slices: min 20 is above max 10; nothing would fit"),
        ("slices = { min = 0 }", "where.slices: a stack has at least 1 slice"),
        ("extent_mm = {}", "where.extent_mm: a range was expected: { min = 1, max = 2 }"),
        ("extent_mm = { mim = 1 }", "where.extent_mm: a range was expected"),
        ("extent_mm = 90", "where.extent_mm: a range was expected"),
        ('extent_mm = { max = "90" }', "where.extent_mm: min and max of a range must be numbers"),
        ("extent_mm = { max = true }", "where.extent_mm: min and max of a range must be numbers"),
        ("modality = 3", "where.modality is 3; allowed: a list of texts in quotes"),
        (
            'kind = ["picture"]',
            'where.kind[0] is "picture"; allowed: a list; each item: "image" or "localizer"',
        ),
        ('plane = ["tra"]', 'where.plane[0] is "tra"; allowed: a list; each item: "axial" or "coronal"'),
        ("contrast = 1", "where.contrast is 1; allowed: true or false"),
        ("attributes = { EchoTime = {} }", "where.attributes: EchoTime: a range was expected"),
        ("attributes = { EchoTime = [] }", "where.attributes: EchoTime: a list of at least one text"),
        ("attributes = { EchoTime = [3] }", "where.attributes: EchoTime: a list of at least one text"),
        ("attributes = []", "where.attributes: a table was expected"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_with_its_route_and_key(
    tmp_path: Path, line: str, expected: str
) -> None:
    said = complaint(tmp_path, f'[[routes]]\nname = "a"\nmodel = "b"\n[routes.where]\n{line}\n')
    assert said.startswith(f"node.toml: routes[0].{expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('priority = "low"', 'routes[0].priority is "low"; allowed: "urgent" or "routine" or "off-peak"'),
        ('prefer = ["nicest"]', 'routes[0].prefer[0] is "nicest"; allowed: a list; each item: "fewest_'),
        ('prefer = ["most_slices", "most_slices"]', 'routes[0].prefer: "most_slices" is there twice'),
        ("maximum_missing_slices = -1", "routes[0].maximum_missing_slices is -1; allowed: a whole number"),
    ],
)
def test_a_route_holds_only_what_is_known(tmp_path: Path, line: str, expected: str) -> None:
    assert complaint(tmp_path, TWO_PEERS.format(route=line)).startswith(f"node.toml: {expected}")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ('["segg"]', 'destinations[1].results[0] is "segg"; allowed: a list, not empty; each item: "seg"'),
        ("[]", "destinations[1].results is []; allowed: a list, not empty"),
        ('["sr", "sr"]', 'destinations[1].results: "sr" is there twice'),
    ],
)
def test_a_destination_gets_known_forms_of_results_each_once(
    tmp_path: Path, results: str, expected: str
) -> None:
    said = complaint(tmp_path, f"{TWO_PEERS.format(route='')}results = {results}\n")
    assert said.startswith(f"node.toml: {expected}")


def test_a_destination_gets_the_forms_that_it_asks_for_and_a_segmentation_by_default(tmp_path: Path) -> None:
    text = f'{TWO_PEERS.format(route="")}results = ["labelmap", "sr"]\n'
    settings = load_node_settings(written(tmp_path, text))
    assert settings.destination("pacs").results == (ResultForm.SEG,)
    assert settings.destination("archive").results == (ResultForm.LABEL_MAP, ResultForm.SR)


def test_every_form_of_result_is_named_where_a_wrong_one_was_written(tmp_path: Path) -> None:
    said = complaint(tmp_path, f'{TWO_PEERS.format(route="")}results = ["x"]\n')
    assert [form for form in ResultForm if f'"{form}"' not in said] == []


def test_conditions_are_read_as_they_are_written(tmp_path: Path) -> None:
    lines = """[routes.where]
        kind = ["image", "map"]
        plane = ["axial"]
        contrast = false
        extent_mm = { max = 300 }
        [routes.where.attributes]
        SeriesDescription = ["*T1*", "!*LOC*"]
        EchoTime = { min = 2.5 }
    """
    where = load_node_settings(written(tmp_path, TWO_PEERS.format(route=lines))).routes[0].where
    assert (where.kind, where.plane) == ((ImageKind.IMAGE, ImageKind.MAP), (Plane.AXIAL,))
    assert (where.contrast, where.extent_mm, where.slices) == (False, Range(max=300), Range(min=8))
    assert where.attributes == {"SeriesDescription": ("*T1*", "!*LOC*"), "EchoTime": Range(min=2.5)}


def test_a_route_without_conditions_keeps_to_mr_images() -> None:
    where = RouteSettings(name="a", model="b").where
    assert (where.modality, where.kind) == (("MR",), (ImageKind.IMAGE,))


@pytest.mark.parametrize("title", ["", " PACS", "PACS ", "SEVENTEEN_LETTERS", "BACK\\\\SLASH", "MÜNCHEN"])
def test_an_impossible_ae_title_is_refused(tmp_path: Path, title: str) -> None:
    assert "16 printable ASCII characters" in complaint(tmp_path, f'[scp]\nae_title = "{title}"\n')


def test_broken_toml_is_reported_with_its_line(tmp_path: Path) -> None:
    said = complaint(tmp_path, "[scp]\nport = 104\nhost 1\n")
    assert said.startswith("node.toml: not valid TOML:")
    assert "line 3" in said


def test_bytes_that_are_no_text_are_reported_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b'[node]\nsite_name = "\xff"\n')
    with pytest.raises(ConfigError, match=r"not UTF-8 \(at line 2\)"):
        load_node_settings(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_node_settings(tmp_path / "absent.toml")


def test_a_password_in_the_database_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    said = complaint(tmp_path, '[database]\nurl = "postgresql+psycopg://node:hunter2@db/site"\n')
    assert said.startswith("node.toml: database.url: holds a password")
    assert "hunter2" not in said


def test_a_database_of_another_kind_is_refused(tmp_path: Path) -> None:
    assert "must begin with one of sqlite," in complaint(tmp_path, '[database]\nurl = "mysql://db/site"\n')


def test_a_route_to_an_unknown_destination_is_refused(tmp_path: Path) -> None:
    said = complaint(tmp_path, TWO_PEERS.format(route='destinations = ["pasc"]'))
    assert said == 'node.toml: routes[0].destinations: no destination "pasc"; there is: "pacs", "archive"'


def test_a_name_used_twice_is_refused(tmp_path: Path) -> None:
    said = complaint(tmp_path, TWO_PEERS.format(route="").replace('"archive"', '"pacs"'))
    assert said == 'node.toml: destinations: the name "pacs" is used twice; names must differ'


def test_federation_without_an_address_is_refused(tmp_path: Path) -> None:
    assert "federation.url is empty" in complaint(tmp_path, "[federation]\nenabled = true\n")


def test_a_route_that_names_no_destination_sends_to_all(tmp_path: Path) -> None:
    settings = load_node_settings(written(tmp_path, TWO_PEERS.format(route="")))
    assert [peer.name for peer in settings.destinations_of(settings.routes[0])] == ["pacs", "archive"]


def test_a_route_sends_to_the_destinations_that_it_names(tmp_path: Path) -> None:
    settings = load_node_settings(written(tmp_path, TWO_PEERS.format(route='destinations = ["archive"]')))
    archive = Destination(name="archive", ae_title="ARCHIVE", host="192.0.2.1", port=11112)
    assert settings.destinations_of(settings.routes[0]) == (archive,)


def test_a_destination_that_left_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no destination "old"'):
        load_node_settings(written(tmp_path, "")).destination("old")


def test_relative_paths_start_at_the_file_but_data_dir_at_the_working_folder(tmp_path: Path) -> None:
    text = '[node]\ndata_dir = "d"\n[models]\nfolder = "m"\n[federation]\nca_file = "ca.pem"\n'
    settings = load_node_settings(written(tmp_path, text))
    assert settings.node.data_dir == Path.cwd() / "d"
    assert settings.packages_dir == tmp_path / "m"
    assert settings.federation.ca_file == tmp_path / "ca.pem"


def test_an_empty_database_url_means_sqlite_in_the_data_folder(tmp_path: Path) -> None:
    settings = load_node_settings(written(tmp_path, f"[node]\ndata_dir = '{tmp_path}'\n"))
    assert settings.database_url == f"sqlite:///{tmp_path}/node.sqlite"


def test_settings_cannot_be_changed() -> None:
    settings = load_node_settings(None)
    with pytest.raises(ValidationError, match="frozen"):
        settings.scp.port = 1  # type: ignore[misc]  # that it cannot be done is the test


def on_wednesday(local: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-04T{local}")


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [("02:00-05:00", "02:00", "05:00"), ("22:00-05:00", "23:30", "12:00"), ("22:00-05:00", "04:59", "05:00")],
)
def test_the_training_window_opens_and_closes(window: str, inside: str, outside: str) -> None:
    training = TrainingSettings(window=window)
    assert training.is_open(on_wednesday(inside))
    assert not training.is_open(on_wednesday(outside))


@pytest.mark.parametrize(
    ("window", "days", "local", "expected"),
    [
        ("22:00-05:00", ("sat",), "2026-03-07T23:00", "2026-03-14T22:00"),  # Saturday, open already
        ("22:00-05:00", ("sat",), "2026-03-08T23:00", "2026-03-14T22:00"),
        ("22:00-05:00", ("sat",), "2026-03-07T04:00", "2026-03-07T22:00"),  # Friday's night has none
        ("02:00-05:00", ("mon", "thu"), "2026-03-04T12:00", "2026-03-05T02:00"),
        ("02:00-05:00", (), "2026-03-04T03:00", "2026-03-05T03:00"),  # never: asked again a day later
        ("00:00-00:00", ("sun",), "2026-03-04T12:00", "2026-03-08T00:00"),
    ],
)
def test_the_training_window_opens_on_its_days(
    window: str, days: tuple[Weekday, ...], local: str, expected: str
) -> None:
    training = TrainingSettings(window=window, days=days)
    assert training.next_opening(datetime.fromisoformat(local)) == datetime.fromisoformat(expected)


def test_a_window_that_passes_midnight_belongs_to_the_day_it_opens_on() -> None:
    saturdays = TrainingSettings(window="22:00-05:00", days=("sat",))
    asked = ("07T04:00", "07T23:00", "08T04:59", "08T05:00", "08T23:00")
    answers = [saturdays.is_open(datetime.fromisoformat(f"2026-03-{local}")) for local in asked]
    assert answers == [False, True, True, False, False]


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("2026-03-04T12:00", "2026-03-04T20:00"),
        ("2026-03-04T19:59", "2026-03-04T20:00"),
        ("2026-03-04T20:00", "2026-03-04T20:00"),  # open: at once
        ("2026-03-05T05:59", "2026-03-05T05:59"),
        ("2026-03-05T06:00", "2026-03-05T20:00"),
    ],
)
def test_off_peak_work_waits_for_the_evening(local: str, expected: str) -> None:
    now = datetime.fromisoformat(local).astimezone(UTC)  # a time without zone is local
    assert WorkSettings().next_off_peak(now) == datetime.fromisoformat(expected).astimezone(UTC)


def test_off_peak_hours_within_a_day_open_again_on_the_next() -> None:
    now = datetime.fromisoformat("2026-03-04T15:00").astimezone(UTC)
    opens = WorkSettings(off_peak="12:00-14:00").next_off_peak(now)
    assert opens == datetime.fromisoformat("2026-03-05T12:00").astimezone(UTC)


@given(st.integers(1_600_000_000, 2_000_000_000).map(lambda s: datetime.fromtimestamp(s, UTC)))
def test_off_peak_hours_are_never_more_than_a_day_away_and_open_when_they_come(now: datetime) -> None:
    work = WorkSettings(off_peak="23:30-04:00")
    opens = work.next_off_peak(now)
    assert now <= opens <= now + timedelta(hours=25)  # an hour more where clocks are set back
    assert work.next_off_peak(opens) == opens


@given(st.datetimes())
def test_a_training_window_of_equal_times_is_always_open(local: datetime) -> None:
    assert TrainingSettings(window="00:00-00:00").is_open(local)


def test_the_shipped_models_lie_beside_the_package_in_a_checkout() -> None:
    assert shipped_models_folder() == CONFIG.parent / "models"
