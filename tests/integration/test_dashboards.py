"""deploy/grafana: every query of every panel and variable, with Grafana's part replaced, as the analyst.

What is shown to a tenant is his own: the dashboard's rows do not change when nothing else can be read.
"""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from inferbus_meter.migrate import statements
from inferbus_runtime import clock

from tests.harness import grafana
from tests.harness.store import USERS, AskedError, ClickHouse, clickhouse
from tests.harness.traffic import Traffic, fill

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))
}
PANELS = [(name, *query) for name, board in DASHBOARDS.items() for query in grafana.queries(board)]
TENANT, REVISION, MINUTES = "tenant-00", "r1", 50
ROLE = (FOLDER / "tenant_role.sql").read_text()
# Tables of the policies.
GUARDED = sorted(set(re.findall(r"inferbus\.(\w+)", ROLE.split("GRANT")[0])))


def titles(*names: str) -> list[str]:
    return [f"{name}: {title}" for name in names for title, _, _ in grafana.queries(DASHBOARDS[name])]


@pytest_asyncio.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouse]:
    """The last 50 minutes of 20 tenants: 300,000 tokens."""
    async with clickhouse(tmp_path_factory.mktemp("dashboards")) as made:
        await fill(made, Traffic(2400, clock.now_us() // 1_000_000 - MINUTES * 60, MINUTES * 60 - 100))
        yield made


def view(board: dict[str, Any], interval: int = 60, **chosen: str) -> grafana.View:
    """An hour; ``chosen`` instead of what the dashboard opens with."""
    now = clock.now_us() // 1_000_000
    values = grafana.at_first(board, tenant=TENANT, currency="USD")
    return grafana.View(now - 3600, now, interval, values | {name: (value,) for name, value in chosen.items()})


def test_there_are_three_dashboards_and_their_frames_fit() -> None:
    assert set(DASHBOARDS) == {"operations", "cost", "tenant"}
    source = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "inferbus.yaml").read_text())["datasources"][0]
    uids = [board["uid"] for board in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    for board in DASHBOARDS.values():
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert board["timezone"] == "utc"
        for panel in board["panels"]:
            assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}, panel["title"]
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
    for name in ("operations", "cost"):
        assert {"tenant", "model", "revision", "worker", "class"} <= set(grafana.variables(DASHBOARDS[name]))
    assert {"tenant", "model", "class"} <= set(grafana.variables(DASHBOARDS["tenant"]))


def test_panels_do_not_overlap() -> None:
    for board in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, panel["title"]
            taken |= cells


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_panel_says_what_it_shows_and_in_which_unit(name: str) -> None:
    titles = [panel["title"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in DASHBOARDS[name]["panels"]:
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert panel["description"], panel["title"]
        # A table has its units by column; a bare number is money, whose currency the title or the series names.
        if panel["type"] != "table" and unit == "short":
            assert re.search(r"currency", panel["title"]), panel["title"]


@pytest.mark.parametrize(("name", "title", "kind", "sql"), PANELS, ids=titles(*DASHBOARDS))
async def test_a_panel_has_rows_of_its_form(store: ClickHouse, name: str, title: str, kind: str, sql: str) -> None:
    asked = grafana.replaced(sql, view(DASHBOARDS[name]))
    found = await store.rows(asked)
    assert found
    columns = list(found[0])
    if kind == "timeseries":
        assert columns[0] == "time"
        labels = [column for column in columns[1:] if isinstance(found[0][column], str)]
        assert labels == columns[1 : 1 + len(labels)], "a label stands before the values"
        assert len(labels) <= 1
        assert len(columns) > 1 + len(labels)
        times = [row["time"] for row in found]
        assert times == sorted(times)
        assert len(set(times)) > 10
    else:
        panel = next(panel for panel in DASHBOARDS[name]["panels"] if panel["title"] == title)
        units = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
        assert units <= set(columns)
    for row in found:
        for column, value in row.items():
            assert value is not None, (column, row)


@pytest.mark.parametrize(("name", "title", "kind", "sql"), PANELS, ids=titles(*DASHBOARDS))
async def test_a_panel_obeys_each_choice(store: ClickHouse, name: str, title: str, kind: str, sql: str) -> None:
    """One value of each variable is still a query; a value that there is not gives nothing but zeros."""
    board = DASHBOARDS[name]
    chosen = {name: value for name, value in (
        ("tenant", TENANT), ("model", "model-0"), ("revision", REVISION), ("worker", "worker-0"), ("class", "batch")
    ) if name in grafana.variables(board)}  # fmt: skip
    await store.rows(grafana.replaced(sql, view(board, 300, **chosen)))
    for variable in chosen:
        if variable not in re.findall(r"\$(?:\{)?(\w+)", sql):
            continue
        nothing = await store.rows(grafana.replaced(sql, view(board, 300, **{variable: "no'body"})))
        numbers = [value for row in nothing for value in row.values() if value is not None]
        assert all(value == 0 for value in numbers), (variable, nothing[:3])


@pytest.mark.parametrize("name", DASHBOARDS)
async def test_variables_offer_what_is_there(store: ClickHouse, name: str) -> None:
    board = DASHBOARDS[name]
    offered = {
        variable: [*(row.popitem()[1] for row in await store.rows(grafana.replaced(about["query"], view(board))))]
        for variable, about in grafana.variables(board).items()
        if about["type"] == "query"
    }
    assert all(offered.values())
    assert "model-0" in offered["model"]
    assert "interactive" in offered["class"]
    assert TENANT in offered["tenant"]


# --- what a tenant may see ---


async def policed(store: ClickHouse, sql: str) -> list[dict[str, Any]]:
    """As under the row policies of a user named like the tenant: its condition on each table, in any view."""
    filters = ", ".join(f"'{table}': 'tenant_id = \\'{TENANT}\\''" for table in GUARDED)
    return await store.rows(sql, "admin", additional_table_filters=f"{{{filters}}}")


@pytest.mark.parametrize("sql", [sql for _, _, sql in grafana.queries(DASHBOARDS["tenant"])], ids=titles("tenant"))
async def test_a_tenants_panel_shows_nothing_of_others(store: ClickHouse, sql: str) -> None:
    assert "tenant_id = ${tenant:singlequote}" in sql
    tables = set(re.findall(r"(?:FROM|JOIN) (\w+)", sql))
    assert tables <= {"bills", "charges", *GUARDED}, "a table without a row policy"
    asked = grafana.replaced(sql, view(DASHBOARDS["tenant"]))
    assert await policed(store, asked) == await store.rows(asked)


async def test_the_stand_in_for_row_policies_hides_other_tenants(store: ClickHouse) -> None:
    for table in ("bills", "charges", *GUARDED):
        found = await policed(store, f"SELECT DISTINCT tenant_id FROM {table}")
        assert {row["tenant_id"] for row in found} <= {TENANT}, table
    asked = "SELECT uniq(tenant_id) AS tenants FROM charges"
    assert (await store.rows(asked))[0]["tenants"] == 20
    assert (await policed(store, asked))[0]["tenants"] == 1


async def test_a_tenants_variables_offer_his_own_only(store: ClickHouse) -> None:
    board = DASHBOARDS["tenant"]
    tenants = grafana.replaced(grafana.variables(board)["tenant"]["query"], view(board))
    assert await policed(store, tenants) == [{"tenant_id": TENANT}]
    for name, variable in grafana.variables(board).items():
        if variable["type"] == "query" and name != "tenant":
            assert "tenant_id = ${tenant:singlequote}" in variable["query"]


async def test_every_table_that_the_role_may_read_has_a_policy_and_the_engine_reads_the_statements(
    store: ClickHouse,
) -> None:
    granted = set(re.findall(r"^GRANT SELECT ON inferbus\.(\w+) TO tenant_reader", ROLE, re.MULTILINE))
    assert granted == {*GUARDED, "bills", "charges"}
    with_tenant = await store.rows(
        "SELECT DISTINCT table FROM system.columns WHERE database = 'inferbus' AND name = 'tenant_id'", "admin"
    )
    assert granted <= {row["table"] for row in with_tenant}
    for statement in statements(ROLE):
        await store.command("SELECT formatQuery({statement:String})", param_statement=statement.replace("\n", " "))


@pytest.mark.parametrize(
    ("user", "shown"), [("tenant_acme", ["acme"]), ("tenant_writer", ["writer"]), *((user, []) for user in USERS)]
)
async def test_a_tenant_called_like_a_user_of_the_platform_is_not_he(
    store: ClickHouse, user: str, shown: list[str]
) -> None:
    """Nor does that user get the tenant's rows only, or his role."""
    (condition,) = re.findall(r"USING (.+) TO tenant_reader", ROLE)
    condition = condition.replace("currentUser()", f"'{user}'")
    found = await store.rows(
        f"SELECT tenant_id FROM values('tenant_id String', 'acme', '', 'tenant_acme', 'admin', 'writer', 'analyst') "
        f"WHERE {condition}"
    )
    assert [row["tenant_id"] for row in found] == shown
    made = re.findall(r"(?:CREATE USER IF NOT EXISTS|GRANT tenant_reader TO|ALTER USER) `(\w+)`", ROLE)
    assert len(made) == 3
    assert all(name.startswith("tenant_") for name in made)


async def test_the_embedded_engine_has_no_row_policies(store: ClickHouse) -> None:
    """If this fails, it has: then the real thing can be tested, and deploy/grafana/README.md says too little."""
    policy = next(statement for statement in statements(ROLE) if "ROW POLICY" in statement)
    with pytest.raises(AskedError, match="497"):
        await store.command(policy)
