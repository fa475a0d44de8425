"""Forms of an output and of tools: grammars as LLGuidance reads them, and the text that stands for tools."""

import json
import re
from fractions import Fraction
from typing import Any

import llguidance
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.schema_bounds import (
    MAX_COUNT,
    MAX_EXPRESSION,
    MAX_LENGTH,
    excess_of,
    expression_size,
    multiple_cost,
)
from inferbus_runtime.errors import InferBusError
from inferbus_worker.core.grammar import MAX_DEPTH, Grammar, grammar_of
from inferbus_worker.core.grammar_formats import formats_held
from inferbus_worker.core.grammar_numbers import multiples_named
from inferbus_worker.core.sampling import fault_of
from inferbus_worker.core.tool_text import plain_turns
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    Generation,
    Message,
    Prompt,
    Tool,
    ToolCall,
    ToolMode,
)
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate

WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    json.dumps({"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"],
                "additionalProperties": False, "$defs": {"City": {"type": "string"}}}),
)  # fmt: skip
TIME = Tool("get_time")
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOON = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


def chat(*tools: Tool, content: str = "x", **more: Any) -> Chat:
    return Chat((Message("user", content),), tools, **more)


def grammar(source: Chat | Prompt, constraint: Constraint | None = None) -> Grammar:
    made = grammar_of(Generation(b"k" * 16, source, constraint=constraint))
    assert made is not None
    Follower(made)
    return made


def refused(source: Chat | Prompt, constraint: Constraint | None = None) -> InferBusError:
    """How it is refused, before or by the engine's library."""
    with pytest.raises(InferBusError) as caught:
        Follower(grammar_of(Generation(b"k" * 16, source, constraint=constraint)))
    assert caught.value.reason == "invalid_schema"
    assert len(caught.value.message) > 20
    assert "\n" not in caught.value.message
    assert not re.search(r"<[a-z-]+/?>|%llguidance|NoExtension|lexer|row has", caught.value.message)
    return caught.value


def accepts(made: Grammar, text: str) -> bool:
    """The whole text, in pieces, and that it may end there."""
    follower = Follower(made)
    return all(follower.takes(text[at : at + 3]) for at in range(0, len(text), 3)) and follower.complete()


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, value if isinstance(value, str) else json.dumps(value))


def test_without_a_form_there_is_no_grammar() -> None:
    assert grammar_of(Generation(b"k" * 16, chat())) is None
    assert grammar_of(Generation(b"k" * 16, chat(WEATHER, tool_mode=ToolMode.NONE))) is None
    assert grammar_of(Generation(b"k" * 16, Prompt("x"))) is None


def test_json_has_the_white_space_of_json_dumps() -> None:
    made = grammar(Prompt("x"), Constraint(ConstraintKind.JSON_OBJECT))
    assert accepts(made, json.dumps({"a": [1, {"b": "ü\n"}], "c": None}, ensure_ascii=False))
    assert not accepts(made, '{"a":1}')
    assert not accepts(made, '{"a":  1}')
    assert not accepts(made, '{"a": 1}\n')
    assert not accepts(made, "[1]")


@pytest.mark.parametrize(
    ("expression", "good", "bad"),
    [
        ("a/b", "a/b", "a"),
        (r"a\/b", "a/b", r"a\/b"),
        ("a\nb", "a\nb", "ab"),
        (r"\\", "\\", "/"),
        ("[a-z/]{3}", "x/y", "xy"),
        ("", "", "x"),
        ("/ \"x\" start: /.*", '/ "x" start: /z', "anything"),
        ("a|b", "b", "ab"),
    ],
)  # fmt: skip
def test_expressions_mean_what_they_say(expression: str, good: str, bad: str) -> None:
    made = grammar(chat(), Constraint(ConstraintKind.REGEX, expression))
    assert accepts(made, good)
    assert not accepts(made, bad)


@given(st.text(max_size=30))
def test_no_expression_becomes_grammar(expression: str) -> None:
    """Whatever is sent stays one terminal between slashes on the line of its rule."""
    made = grammar_of(Generation(b"k" * 16, Prompt("x"), constraint=Constraint(ConstraintKind.REGEX, expression)))
    assert made is not None
    header, rule, rest = made.text.split("\n")
    assert (header, rest) == ("%llguidance {}", "")
    inside = rule.removeprefix("start: /").removesuffix("/")
    at = 0
    while at < len(inside):
        assert inside[at] != "/"
        at += 2 if inside[at] == "\\" else 1
    assert rule.startswith("start: /")
    assert rule.endswith("/")


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3), st.text(min_size=1, max_size=20))
def test_no_schema_or_name_becomes_grammar(junk: dict[str, str], name: str) -> None:
    made = grammar_of(
        Generation(b"k" * 16, chat(Tool(name, "", json.dumps({"description": junk})), tool_mode=ToolMode.REQUIRED))
    )
    assert made is not None
    assert len(made.text.splitlines()) == 4  # header, start, body, body0
    call = "<tool_call>\n" + json.dumps({"name": name, "arguments": {}}) + "\n</tool_call>"
    assert accepts(made, call)


def test_required_is_calls_and_nothing_else() -> None:
    made = grammar(chat(WEATHER, TIME, tool_mode=ToolMode.REQUIRED))
    assert accepts(made, ROME)
    assert accepts(made, f"{ROME}\n{NOON}\n{ROME}")
    for text in ("", "hello", f"hello {ROME}", f"{ROME} bye", f"{ROME}{ROME}", ROME.replace("Rome", 'R", "x": "1')):
        assert not accepts(made, text)
    one = grammar(chat(WEATHER, TIME, tool_mode=ToolMode.REQUIRED, parallel_tool_calls=False))
    assert accepts(one, NOON)
    assert not accepts(one, f"{ROME}\n{NOON}")
    named = grammar(chat(WEATHER, TIME, tool_mode=ToolMode.REQUIRED, tool_name="get_time"))
    assert accepts(named, NOON)
    assert not accepts(named, ROME)


def test_auto_is_text_until_a_call_begins() -> None:
    made = grammar(chat(WEATHER, TIME))
    for text in ("", "hello <b>", "a < b <tool", ROME, f"Let me see.\n{ROME}\n{NOON}"):
        assert accepts(made, text)
    for text in ("see <tool_call>", "<tool_call>x", f"{ROME} and then", ROME.replace("get_weather", "rm")):
        assert not accepts(made, text)
    one = grammar(chat(WEATHER, parallel_tool_calls=False))
    assert accepts(one, f"Let me see. {ROME}")
    assert not accepts(one, f"{ROME}\n{ROME}")


def test_auto_with_a_form_is_either() -> None:
    made = grammar(chat(WEATHER), schema({"type": "object", "properties": {"a": {"type": "integer"}}}))
    assert accepts(made, '{"a": 1}')
    assert accepts(made, ROME)
    assert not accepts(made, "text")
    assert not accepts(made, f"text {ROME}")


def test_a_fault_names_what_is_at_fault() -> None:
    bad_tool = Tool("broken", "", json.dumps({"type": "object", "properties": {"x": {"type": "frog"}}}))
    fault = refused(chat(WEATHER, bad_tool))
    assert fault.param == "tools"
    assert "'broken'" in fault.message
    assert "frog" in fault.message
    assert refused(chat(WEATHER), schema({"minimum": "x", "type": "integer"})).param == "response_format"


def nested(depth: int) -> Any:
    value: Any = {"type": "string"}
    for _ in range(depth):
        value = {"items": value}
    return value


@pytest.mark.parametrize("source", ["{", "[]", "true", '{"a": NaN}', "[" * 100_000, "", json.dumps(nested(MAX_DEPTH))])
def test_what_is_no_schema_is_refused_before_any_engine(source: str) -> None:
    with pytest.raises(InferBusError) as refused:
        grammar_of(Generation(b"k" * 16, chat(), constraint=schema(source)))
    assert (refused.value.param, refused.value.reason) == ("response_format", "invalid_schema")


def pattern(expression: str) -> dict[str, Any]:
    return {"type": "string", "pattern": expression}


def optional(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{at}": {"type": "integer"} for at in range(count)}}


MANY = {"type": "array", "items": {"type": "null"}, "maxItems": 1000}
EXCESSIVE: dict[str, Any] = {
    "items": {"type": "array", "minItems": 100_000_000, "items": {"type": "integer"}},
    "maxItems": {"type": "array", "maxItems": MAX_COUNT + 1},
    "properties counted": {"type": "object", "minProperties": 100_000},
    "counts together": {"prefixItems": [MANY] * 6},
    "counts behind references": {"$defs": {"a": MANY}, "prefixItems": [{"$ref": "#/$defs/a", "minItems": 1}] * 5},
    "counts behind allOf": {"$defs": {"a": MANY}, "allOf": [{"$ref": "#/$defs/a"}] * 5},
    "counts where only a reference looks": {"hidden": {"minItems": 10**8}, "$ref": "#/hidden"},
    "a length that is no number": {"type": "string", "minLength": MAX_LENGTH + 1},
    "a million in a pattern": pattern("^a{1000000}$"),
    "repeats of repeats": pattern("^((a{100}){100}){100}$"),
    "zeros before": pattern("^a{0000000001000000}$"),
    "blanks inside a repeat": pattern("(?x)a{ 1000000 }"),
    "patterns of names": {"type": "object", "patternProperties": {"^a{5000}$": {}}},
    "many patterns": {"prefixItems": [pattern("^[a-z]{1900}$")] * 11},
    "a large multiple": {"type": "integer", "multipleOf": 1_000_003},
    "a long fraction": {"type": "number", "multipleOf": 0.1234567},
    "multiples that meet": {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    "too many properties": optional(501),
    "too many allOf": {"allOf": [{}] * 66},
    "too many properties together": {"anyOf": [optional(499), optional(498), optional(497)]},
    "too many alternatives": {"anyOf": [{"const": number} for number in range(1_001)]},
    "brackets that never close": pattern("[" * 100_000),
}
# What passes the bounds and is found by the library, some only as it walks.
TOO_COMPLEX: dict[str, Any] = {
    "many ways": pattern("^(a?){500}a{500}(b|c)*$"),
    "many ways, later": pattern("^xyz(a?){500}a{500}(b|c)*$"),
    "a reference to itself": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "no end": {"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}},
               "$ref": "#/$defs/a"},
    "more alternatives than it can follow": {"anyOf": [optional(499), optional(498)]},
}  # fmt: skip


@pytest.mark.parametrize("wrong", EXCESSIVE)
def test_what_asks_too_much_is_refused_before_anything_is_compiled(wrong: str) -> None:
    assert excess_of(EXCESSIVE[wrong]) is not None
    assert refused(chat(), schema(EXCESSIVE[wrong])).param == "response_format"
    assert refused(chat(Tool("f", "", json.dumps(EXCESSIVE[wrong] | {"type": "object"})))).param == "tools"


@pytest.mark.parametrize("wrong", TOO_COMPLEX)
def test_what_is_too_complex_is_refused_in_words(wrong: str) -> None:
    assert excess_of(TOO_COMPLEX[wrong]) is None
    error = refused(chat(), schema(TOO_COMPLEX[wrong]))
    assert ";" in error.message, "and what to do"


def test_an_expression_is_bounded_as_a_pattern_is() -> None:
    assert refused(chat(), Constraint(ConstraintKind.REGEX, "a{1000000}")).param == "response_format"
    assert accepts(grammar(chat(), Constraint(ConstraintKind.REGEX, "a{1000}")), "a" * 1000)


@pytest.mark.parametrize(
    "usual",
    [
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": MAX_COUNT},
        {"type": "string", "minLength": 1, "maxLength": MAX_LENGTH},
        {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 10**6},
        {"prefixItems": [{"type": "integer", "multipleOf": 3600}, {"type": "number", "multipleOf": 0.0001}]},
        pattern("^[A-Za-z0-9_-]{1,64}$"),
        pattern(r"^\+?[0-9]{1,3}([ -]?[0-9]{2,4}){2,5}$"),
        {"type": "object", "properties": {"maxItems": {"type": "integer"}, "pattern": {"type": "string"}}},
        optional(400),
    ],
)
def test_usual_bounds_are_no_excess(usual: dict[str, Any]) -> None:
    grammar(chat(), schema(usual))


@given(
    st.recursive(
        st.sampled_from(["a", r"\{", "[{]", r"[\]x]", "[^]a]", ".", r"\w"]).map(lambda piece: (piece, 1)),
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda two: (two[0][0] + two[1][0], two[0][1] + two[1][1])),
            st.tuples(inner, inner).map(lambda two: (f"({two[0][0]}|{two[1][0]})", two[0][1] + two[1][1])),
            st.tuples(inner, st.integers(1, 40)).map(lambda two: (f"({two[0][0]}){{{two[1]}}}", two[0][1] * two[1])),
            st.tuples(inner, st.integers(1, 9)).map(lambda two: (f"({two[0][0]}){{0,{two[1]}}}", two[0][1] * two[1])),
        ),
        max_leaves=8,
    )
)
def test_the_size_of_an_expression_is_what_it_is_written_out(made: tuple[str, int]) -> None:
    expression, size = made
    assert expression_size(expression) == size
    assert (size > MAX_EXPRESSION) == (excess_of(pattern(expression)) is not None)


@given(st.text("ab{}[]()\\,0123456789?*+|^$x-", max_size=40))
def test_any_text_has_a_size(expression: str) -> None:
    assert expression_size(expression) >= 0


@pytest.mark.parametrize(("multiple", "cost"), [("0.01", 1), ("0.25", 25), ("100", 100), ("1e-7", 1), ("2.5", 25)])
def test_a_multiple_costs_its_digits(multiple: str, cost: int) -> None:
    assert multiple_cost(Fraction(multiple)) == cost


BOUND = st.integers(-40, 10).map(lambda quarters: quarters / 4)


@given(st.sampled_from(["integer", "number"]), st.sampled_from([0.25, 0.5, 1, 3]), BOUND, BOUND, st.booleans(), BOUND)
def test_multiples_below_zero_are_named(
    kind: str, step: float, low: float, high: float, open_: bool, at: float
) -> None:
    bounds = {"exclusiveMinimum": low, "exclusiveMaximum": high} if open_ else {"minimum": low, "maximum": high}
    source = {"type": kind, "multipleOf": step, **bounds}
    named = multiples_named({"items": source})["items"]
    inside = low < at < high if open_ else low <= at <= high
    fits = inside and at % step == 0 and (kind == "number" or at == int(at))
    if "enum" in named:
        assert (at in named["enum"]) == fits
        assert all(value < 0 for value in named["enum"])
    else:
        assert named == source
        assert high > 0 if open_ else high >= 0


def test_multiples_below_zero_that_cannot_be_named_are_refused() -> None:
    below: dict[str, Any] = {"type": "number", "multipleOf": 0.5, "maximum": -1}
    for more in ({}, {"minimum": -10_000}, {"minimum": -5, "anyOf": [{}]}, {"minimum": -5, "type": ["number", "null"]}):
        assert "below zero" in refused(chat(), schema({"items": below | more})).message
    grammar(chat(), schema({"const": {"multipleOf": 1, "maximum": -1}}))


@pytest.mark.parametrize("name", ["default", "enum", "const", "examples"])
def test_a_property_may_be_called_as_a_keyword_is(name: str) -> None:
    described = {"properties": {name: {"type": "string", "format": "email"}}, "examples": [{"format": "email"}]}
    text = grammar(chat(), schema({"type": "object"} | described)).text
    assert text.count('"maxLength": 254') == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"$defs": {"u": {"format": "date", "pattern": "x", "allOf": 5}}},
        {"$comment": {"format": "date", "pattern": "x", "allOf": 5}},
        {"type": "number", "multipleOf": 0.5, "minimum": -(10**400), "maximum": -1},
    ],
)
def test_what_stands_in_the_way_is_refused_and_does_not_raise_otherwise(odd: dict[str, Any]) -> None:
    assert refused(chat(), schema({"type": "object"} | odd)).reason == "invalid_schema"


def test_a_follower_finds_the_first_piece_that_does_not_fit() -> None:
    follower = Follower(grammar(chat(), schema({"type": "object", "properties": {"a": {"type": "integer"}}})))
    assert all(map(follower.takes, ('{"', 'a": ', "1")))
    assert not follower.complete()
    assert not follower.takes("x")
    assert follower.broken().reason == "invalid_schema"
    follower.restart()
    assert all(map(follower.takes, ('{"a"', ": 12", "}")))
    assert follower.complete()
    assert not follower.takes(" and more")


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=20))
def test_a_follower_does_not_mind_how_a_text_is_cut(text: str, cuts: list[int]) -> None:
    follower = Follower(grammar(chat(), schema({"type": "string"})))
    rest = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # the grammar writes DEL escaped, only
    for cut in cuts:
        assert follower.takes(rest[:cut])
        rest = rest[cut:]
    assert follower.takes(rest)
    assert follower.complete()


def test_an_answer_that_must_be_a_call_has_no_other_form() -> None:
    must = chat(WEATHER, tool_mode=ToolMode.REQUIRED)
    form = schema({"type": "object"})
    assert grammar_of(Generation(b"k" * 16, must, constraint=form)) == grammar(must)
    assert fault_of(Generation(b"k" * 16, must, constraint=form), ("chat", "tools", "structured_output")) is None


# --- tools in text ----------------------------------------------------------------------------------------------------

CALLED = Message("assistant", "I look.", tool_calls=(ToolCall("1", "get_weather", '{"city":"Rome"}'),))
CONVERSATION = (
    Message("user", "Weather?"),
    CALLED,
    Message("tool", "23 °C", tool_call_id="1"),
    Message("tool", "sunny", tool_call_id="2"),
    Message("user", "Thanks"),
)


def test_tools_are_written_for_a_template_without_them() -> None:
    turns = plain_turns(Chat(CONVERSATION, (WEATHER,)))
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "user"]
    shown = turns[0].content.split("<tools>\n")[2 if turns[0].content.count("<tools>\n") > 1 else 1]
    assert json.loads(shown.split("\n</tools>")[0])["function"]["name"] == "get_weather"
    assert turns[2].content == f"I look.\n{ROME}"
    assert turns[3].content == ("<tool_response>\n23 °C\n</tool_response>\n<tool_response>\nsunny\n</tool_response>")
    assert all(not turn.tool_calls for turn in turns)


def test_the_own_system_message_stays_first() -> None:
    system = Message("system", "Be brief.")
    turns = plain_turns(Chat((system, *CONVERSATION), (WEATHER,)))
    assert turns[0].content.startswith("Be brief.\n\n# Tools")
    assert [turn.role for turn in turns].count("system") == 1
    assert plain_turns(Chat((system, *CONVERSATION)))[0] == system


def test_a_conversation_without_tools_is_left_alone() -> None:
    messages = (Message("system", "a"), Message("user", "b"), Message("assistant", "c"))
    assert tuple(plain_turns(Chat(messages))) == messages


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    source = (
        "{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<open {{ enable_thinking }}>{% endif %}"
    )
    template = ChatTemplate(source, "", "")
    assert template.knows_tools
    assert template.reasoning
    text = template.render(Chat(CONVERSATION, (WEATHER,), reasoning_effort="none"))
    assert text == (
        '[get_weather]<user>Weather?<assistant>I look.<tool_call>{"city": "Rome"}<tool>23 °C<tool>sunny<user>Thanks'
        "<open False>"
    )
    assert template.render(Chat(CONVERSATION[:1]), open_turn=False) == "<user>Weather?"


def test_a_template_that_refuses_is_an_error_of_the_caller() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", "", "")
    with pytest.raises(InferBusError) as refused:
        template.render(Chat(CONVERSATION))
    assert refused.value.param == "messages"
    assert "alternate" not in refused.value.message


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "format": "date"}, '"2024-02-05"', '"0000-02-05"'),
        ({"type": "string", "format": "date-time"}, '"2024-02-05T10:00:00.5Z"', '"0000-02-05T10:00:00Z"'),
        ({"type": "string", "format": "date", "pattern": "^2"}, '"2024-02-05"', '"1024-02-05"'),
        ({"type": "string", "format": "email"}, '"a@example.org"', '"' + "a" * 300 + '@example.org"'),
        ({"properties": {"format": {"format": "email"}}}, '{"format": "a@b.org"}', '{"format": "a"}'),
    ],
)
def test_formats_are_what_readers_take_them_for(schema: Any, good: str, bad: str) -> None:
    tokenizer = llguidance.LLTokenizer("byte")
    held = json.dumps(formats_held(schema) | {"x-guidance": {"item_separator": ", ", "key_separator": ": "}})
    for text, fits in ((good, True), (bad, False)):
        matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_json_schema(held))
        tokens = tokenizer.tokenize_str(text)
        assert (matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()) == fits
