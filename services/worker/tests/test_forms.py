"""Forms of an output and of tools: grammars as LLGuidance reads them, and the text that stands for tools."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime.errors import InferBusError
from inferbus_worker.core.grammar import MAX_DEPTH, Grammar, grammar_of
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
from inferbus_worker.engines.llama_cpp_grammar import fault_of_grammar
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from llguidance import LLMatcher, LLTokenizer

BYTES = LLTokenizer("byte")
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
    assert fault_of_grammar(made) is None
    return made


def accepts(made: Grammar, text: str) -> bool:
    """The whole text, and that it may end there."""
    matcher = LLMatcher(BYTES, made.text)
    ids = BYTES.tokenize_bytes(text.encode())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


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
    assert fault_of_grammar(made) is None
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
    made = grammar_of(Generation(b"k" * 16, chat(WEATHER, bad_tool)))
    fault = fault_of_grammar(made)
    assert (fault.param, fault.reason) == ("tools", "invalid_schema")
    assert "'broken'" in fault.message
    assert "frog" in fault.message
    made = grammar_of(Generation(b"k" * 16, chat(WEATHER), constraint=schema({"minimum": "x", "type": "integer"})))
    assert fault_of_grammar(made).param == "response_format"


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
