from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from engine.contract import BadCall, Call, Json, Message, Part, ToolCall
from engine.template import BadTemplate, ChatTemplate
from engine.text import Text
from tests.support.checkpoints import make_checkpoint

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN_LIKE = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}{% continue %}{% endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
    {%- generation %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- endgeneration %}
    {%- if loop.index0 == ns.last %}{{ ' ' + (message | tojson) }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def message(role: str, text: str) -> Message:
    return Message(role, (Part("text", text),))  # type: ignore[arg-type]


def call(*messages: Message, kwargs: str | None = None) -> Call:
    return Call(
        kind="chat",
        model="m",
        scope="s",
        messages=messages,
        chat_template_kwargs=None if kwargs is None else Json(kwargs),
    )


def render(source: str, asked: Call) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"}, now=lambda: datetime(2026, 7, 14))
    return template.render(template.context(asked))


CHATS = {
    "one": [message("user", " Hello <b>&\u2028 ")],
    "system": [message("system", "Be brief."), message("user", "1 + 1?")],
    "turns": [
        message("user", "Wie heißt du?"),
        message("assistant", "<think>\nhm\n</think>\n\nSluice 🌊"),
        message("user", "世界\n\n```py\nx = {{ 1 }}\n```"),
    ],
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("source", [LLAMA_2, QWEN_LIKE])
@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": False}])
def test_prompts_are_those_of_transformers(
    tmp_path: Path, chat: str, source: str, kwargs: dict[str, bool]
) -> None:
    transformers = pytest.importorskip("transformers")
    make_checkpoint(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
    messages = CHATS[chat]
    asked = call(*messages, kwargs='{"enable_thinking":false}' if kwargs else None)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": m.role, "content": m.text} for m in messages],
        add_generation_prompt=True,
        return_dict=False,
        **kwargs,
    )
    assert Text.load(tmp_path).encode(asked).tolist() == theirs


def test_what_a_template_raises_is_told_to_the_caller() -> None:
    with pytest.raises(BadCall, match="Roles must alternate") as caught:
        render(LLAMA_2, call(message("assistant", "hi")))
    assert caught.value.param == "messages"


def test_a_template_that_stumbles_over_the_messages_is_a_bad_call() -> None:
    for source in ("{{ messages[0].content + 1 }}", "{{ messages[7].content.x }}", "{{ 1 / 0 }}"):
        with pytest.raises(BadCall, match="chat template"):
            render(source, call(message("user", "x")))


def test_a_template_that_does_not_compile_names_its_line() -> None:
    with pytest.raises(BadTemplate, match="line 2"):
        ChatTemplate("ok\n{% if %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ '%s' | format(cycler.__init__.__globals__) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(BadCall):
        render(source, call(message("user", "x")))


def test_a_developer_is_a_system_where_the_template_knows_none() -> None:
    show = "{% for m in messages %}{{ m.role }} {% endfor %}"
    asked = call(message("developer", "x"))
    assert render(show, asked) == "system "
    assert render(show + "{# developer #}", asked) == "developer "


def test_the_date_is_the_clocks() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", call(message("user", "x"))) == "14 Jul 2026"


def test_kwargs_reach_the_template_but_do_not_replace_the_messages() -> None:
    asked = call(message("user", "x"), kwargs='{"style":"short"}')
    assert render("{{ style }}", asked) == "short"
    for taken in ("messages", "tools", "bos_token", "add_generation_prompt"):
        with pytest.raises(BadCall, match=taken):
            render("x", call(message("user", "x"), kwargs=f'{{"{taken}":1}}'))


def test_an_image_is_refused_where_it_stands() -> None:
    asked = call(message("user", "x"), Message("user", (Part("image_url", "{}"),)))
    with pytest.raises(BadCall, match="image_url") as caught:
        render("x", asked)
    assert caught.value.param == "messages[1].content"


def test_earlier_tool_calls_are_shown_with_arguments_as_objects() -> None:
    made = (ToolCall("c1", "add", '{"a": 1}'), ToolCall("c2", "odd", "not json"))
    asked = call(
        Message("assistant", (), tool_calls=made),
        Message("tool", (Part("text", "2"),), name="add", tool_call_id="c1"),
    )
    source = (
        "{% for t in messages[0].tool_calls %}{{ t.function.arguments | tojson }};{% endfor %}"
        "{{ messages[1].tool_call_id }} {{ messages[1].name }}"
    )
    assert render(source, asked) == '{"a": 1};"not json";c1 add'
