"""OpenAI's own SDK administers a tenant of a real stack: ``client.admin.organization``, with nothing changed but the
base URL and the keys. Where InferBus has more than OpenAI (making a key, rotating it), the SDK's raw calls are used."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.admin.organization import AdminAPIKey, AuditLogListResponse, OrganizationUser, Project
from openai.types.admin.organization.projects import (
    ProjectAPIKey,
    ProjectRateLimit,
    ProjectServiceAccount,
    ProjectUser,
)
from pydantic import BaseModel

from tests.harness.local import Stack, running


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("organization") / "home", "synthetic") as started:
        yield started


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """The operator, who acts on the tenant "default"."""
    content = stack.content
    with openai.OpenAI(
        base_url=content["base_url"],
        api_key=content["api_key"],
        admin_api_key=content["admin_key"],
        organization="default",
        max_retries=0,
    ) as made:
        yield made


def whole(thing: BaseModel, kind: type[BaseModel]) -> None:
    """The answer, as it came, is what the SDK's types say: the SDK itself does not check. What is null may be left out,
    what it does not name is ours."""
    kind.model_validate(thing.model_dump(by_alias=True))


def test_projects(client: openai.OpenAI) -> None:
    projects = client.admin.organization.projects
    made = projects.create(name="Shop")
    whole(made, Project)
    assert projects.retrieve(made.id) == made
    assert projects.update(made.id, name="Store").name == "Store"
    others = [projects.create(name=f"P{number}").id for number in range(3)]
    assert [one.id for one in projects.list(limit=2)] == ["default", made.id, *others]  # pages itself
    archived = projects.archive(made.id)
    assert archived.status == "archived"
    assert archived.archived_at is not None
    assert made.id not in [one.id for one in projects.list()]
    assert made.id in [one.id for one in projects.list(include_archived=True)]


def test_a_service_account_and_its_keys(client: openai.OpenAI, stack: Stack) -> None:
    projects = client.admin.organization.projects
    project = projects.create(name="Robots").id
    made = projects.service_accounts.create(project, name="Robot", expires_in_seconds=3600)
    assert made.api_key is not None
    assert made.api_key.expires_at is not None
    with openai.OpenAI(base_url=stack.base_url, api_key=made.api_key.value, max_retries=0) as robot:
        assert [model.id for model in robot.models.list()] == ["synthetic"]
        with pytest.raises(openai.PermissionDeniedError):
            openai.OpenAI(
                base_url=stack.base_url, api_key="-", admin_api_key=made.api_key.value, max_retries=0
            ).admin.organization.projects.list()

        account = projects.service_accounts.retrieve(made.id, project_id=project)
        whole(account, ProjectServiceAccount)
        assert projects.service_accounts.update(made.id, project_id=project, role="owner").role == "owner"
        spare = projects.service_accounts.api_keys.create(made.id, project_id=project, name="spare")
        keys = list(projects.api_keys.list(project, limit=1))
        assert [key.id for key in keys] == [made.api_key.id, spare.id]
        for key in keys:
            whole(key, ProjectAPIKey)
            assert key.owner.service_account is not None
            assert key.owner.service_account.id == made.id
        changed = projects.api_keys.update(spare.id, project_id=project, expires_in_seconds=60)
        assert changed.expires_at is not None
        assert projects.api_keys.retrieve(spare.id, project_id=project).expires_at == changed.expires_at
        assert projects.api_keys.delete(spare.id, project_id=project).deleted
        assert [key.id for key in projects.api_keys.list(project)] == [made.api_key.id]

        assert projects.service_accounts.delete(made.id, project_id=project).deleted
        with pytest.raises(openai.AuthenticationError):
            robot.models.list()
    assert list(projects.service_accounts.list(project)) == []


def test_a_key_made_and_rotated_with_raw_calls(client: openai.OpenAI, stack: Stack) -> None:
    path = "/organization/projects/default/api_keys"
    options = {"headers": {"Authorization": f"Bearer {client.admin_api_key}"}}
    made = client.post(path, body={"name": "ci", "models": ["synthetic"]}, cast_to=object, options=options)
    rotated = client.post(f"{path}/{made['id']}/rotate", body={}, cast_to=object, options=options)
    assert rotated["id"] == made["id"]
    with openai.OpenAI(base_url=stack.base_url, api_key=made["value"], max_retries=0) as old:
        with pytest.raises(openai.AuthenticationError):
            old.models.list()
        assert old.with_options(api_key=rotated["value"]).models.list().data


def test_rate_limits(client: openai.OpenAI) -> None:
    projects = client.admin.organization.projects
    project = projects.create(name="Limited").id
    (shown,) = projects.rate_limits.list_rate_limits(project)
    whole(shown, ProjectRateLimit)
    changed = projects.rate_limits.update_rate_limit(
        shown.id, project_id=project, max_requests_per_1_minute=60, max_tokens_per_1_minute=10_000
    )
    assert (changed.max_requests_per_1_minute, changed.max_tokens_per_1_minute) == (60, 10_000)
    assert list(projects.rate_limits.list_rate_limits(project)) == [changed]
    with pytest.raises(openai.BadRequestError, match="max_images_per_1_minute"):
        projects.rate_limits.update_rate_limit(shown.id, project_id=project, max_images_per_1_minute=1)


def test_users(client: openai.OpenAI) -> None:
    organization = client.admin.organization
    options = {"headers": {"Authorization": f"Bearer {client.admin_api_key}"}}
    body = {"email": "ada@example.com", "name": "Ada"}
    added = client.post("/organization/users", body=body, cast_to=OrganizationUser, options=options)
    whole(added, OrganizationUser)
    assert organization.users.retrieve(added.id).email == "ada@example.com"
    assert organization.users.update(added.id, role="owner").role == "owner"
    assert [user.id for user in organization.users.list(emails=["ada@example.com"])] == [added.id]
    project = organization.projects.create(name="Team").id
    joined = organization.projects.users.create(project, user_id=added.id, role="member")
    whole(joined, ProjectUser)
    assert organization.projects.users.update(added.id, project_id=project, role="owner").role == "owner"
    assert organization.projects.users.retrieve(added.id, project_id=project).role == "owner"
    assert [user.id for user in organization.projects.users.list(project)] == [added.id]
    assert organization.projects.users.delete(added.id, project_id=project).deleted
    assert organization.users.delete(added.id).deleted
    with pytest.raises(openai.NotFoundError):
        organization.users.retrieve(added.id)


def test_admin_keys_and_the_audit_log(client: openai.OpenAI, stack: Stack) -> None:
    organization = client.admin.organization
    made = organization.admin_api_keys.create(name="deputy", expires_in_seconds=600)
    whole(made, AdminAPIKey)
    assert made.id in [key.id for key in organization.admin_api_keys.list(order="desc", limit=1)]
    deputy = client.with_options(admin_api_key=made.value, organization=None).admin.organization
    project = deputy.projects.create(name="By the deputy").id
    deputy.projects.archive(project)
    entries = list(organization.audit_logs.list(limit=1, actor_ids=[made.id]))
    assert [entry.type for entry in entries] == ["project.archived", "project.created"]
    for entry in entries:
        whole(entry, AuditLogListResponse)
    assert entries[1].project_created is not None
    assert entries[1].project_created.data is not None
    assert entries[1].project_created.data.title == "By the deputy"
    since = {"gte": entries[1].effective_at}
    found = organization.audit_logs.list(event_types=["project.archived"], project_ids=[project], effective_at=since)
    assert [entry.id for entry in found] == [entries[0].id]
    assert organization.admin_api_keys.delete(made.id).deleted
    with pytest.raises(openai.AuthenticationError):
        deputy.projects.list()


def test_mistakes_are_the_sdk_s_typed_errors(client: openai.OpenAI) -> None:
    projects = client.admin.organization.projects
    with pytest.raises(openai.NotFoundError) as missing:
        projects.retrieve("proj_none")
    assert missing.value.code == "project_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        projects.create(name="x", geography="EU")
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "geography")
    with pytest.raises(openai.NotFoundError, match="sends no mail"):
        client.admin.organization.invites.create(email="a@example.com", role="reader")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(admin_api_key="ib-wrong").admin.organization.projects.list()
    with pytest.raises(openai.NotFoundError):
        client.with_options(organization="nothing").admin.organization.projects.list()


async def test_the_asynchronous_client(stack: Stack) -> None:
    content = stack.content
    async with openai.AsyncOpenAI(
        base_url=content["base_url"], api_key="-", admin_api_key=content["admin_key"], organization="default"
    ) as client:
        made = await client.admin.organization.projects.create(name="Async")
        assert made.id in [one.id async for one in client.admin.organization.projects.list(limit=1)]


def _usage(client: openai.OpenAI, kind: str, **query: Any) -> Any:
    """A page of the SDK's own method, as what its types say."""
    page = getattr(client.admin.organization.usage, kind)(**query)
    whole(page, type(page))
    return page


def test_usage_and_costs(client: openai.OpenAI, stack: Stack) -> None:
    """What the SDK asked and used is what its own methods say of it; nothing is left to be believed."""
    used = [0, 0]
    begun = int(time.time())
    for _ in range(3):
        made = client.chat.completions.create(
            model="synthetic", messages=[{"role": "user", "content": "count me"}], max_tokens=5, n=2,
            safety_identifier="ada", extra_headers={"x-inferbus-tags": "team=search"},
        )  # fmt: skip
        assert made.usage is not None
        used[0] += made.usage.prompt_tokens
        used[1] += made.usage.completion_tokens
    group_by = ["project_id", "api_key_id", "model", "batch", "service_tier", "user_id"]
    start = begun - begun % 86_400

    def results() -> list[Any]:
        page = _usage(client, "completions", start_time=start, bucket_width="1h", limit=48, group_by=group_by)
        return [result for bucket in page.data for result in bucket.results]

    deadline = time.monotonic() + 60
    while sum(one.output_tokens for one in results()) < used[1]:
        assert time.monotonic() < deadline, "the meter did not get there"
        time.sleep(0.1)
    (one,) = results()
    assert (one.input_tokens, one.output_tokens, one.num_model_requests) == (*used, 3)
    assert (one.project_id, one.model, one.batch, one.service_tier) == ("default", "synthetic", False, "default")
    assert one.user_id is None
    assert one.inferbus_choices == 6

    ours = {"group_by": ["inferbus_end_user", "inferbus_tags"]}
    page = _usage(client, "completions", start_time=start, extra_query=ours)
    (mine,) = [result for bucket in page.data for result in bucket.results]
    assert (mine.inferbus_end_user, mine.inferbus_tags) == ("ada", {"team": "search"})

    for query in (
        {"models": ["other"]},
        {"api_key_ids": ["key_of_another"]},
        {"batch": True},
        {"user_ids": ["user_x"]},
    ):
        page = _usage(client, "completions", start_time=start, **query)
        assert [bucket.results for bucket in page.data] == [[]] * len(page.data)
        assert page.data
    for kind in (
        "embeddings", "moderations", "images", "audio_speeches", "audio_transcriptions", "vector_stores",
        "code_interpreter_sessions", "file_search_calls", "web_search_calls",
    ):  # fmt: skip
        assert all(not bucket.results for bucket in _usage(client, kind, start_time=start).data)

    total = [result for bucket in _usage(client, "costs", start_time=start).data for result in bucket.results]
    lines = [
        result
        for bucket in _usage(client, "costs", start_time=start, group_by=["line_item", "project_id"]).data
        for result in bucket.results
    ]
    assert [one.amount.currency for one in total] == ["usd"]
    assert total[0].amount.value > 0
    assert sum(one.amount.value for one in lines) == pytest.approx(total[0].amount.value)
    quantities = {one.line_item: one.quantity for one in lines}
    assert quantities["synthetic, output_tokens"] == used[1]
    assert sum(quantities.get(f"synthetic, {kind}", 0) for kind in ("input_tokens", "cached_input_tokens")) == used[0]


def test_pages_of_usage(client: openai.OpenAI) -> None:
    start = int(time.time()) // 60 * 60 - 600
    found: list[tuple[int, int]] = []
    query: dict[str, Any] = {"start_time": start, "bucket_width": "1m", "limit": 4}
    while True:
        page = _usage(client, "completions", **query)
        found += [(bucket.start_time, bucket.end_time) for bucket in page.data]
        if not page.has_more:
            break
        query["page"] = page.next_page
    assert [begin for begin, _ in found] == list(range(start, found[-1][1], 60))
    assert found[-1][1] > time.time() - 60
    with pytest.raises(openai.BadRequestError) as bad:
        _usage(client, "completions", start_time=start, group_by=["colour"])
    assert bad.value.param == "group_by"
