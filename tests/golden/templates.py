"""What transformers makes of chat templates: tests/golden/templates.json.

    python tests/golden/templates.py

Renders conversations with the published templates of tests/golden/templates/ and, one by one, the constructs
that templates use. Where transformers raises an error the answer is null, and this crate must refuse too.
Made with transformers 5.23.0, Jinja2 3.1.6.
"""

import datetime
import json
from pathlib import Path

import transformers.utils.chat_template_utils as chat
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
NOW = datetime.datetime(2026, 2, 3, 4, 5, 6)


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat.datetime = FixedClock

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für eine Stadt <b>\"now\"</b> & 'später'",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "città, 城市"}, "days": {"type": "integer", "minimum": 1, "default": 1.5}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NO_ARGUMENTS = {"type": "function", "function": {"name": "now", "description": None, "parameters": {"type": "object", "properties": {}, "required": []}}}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text, **more):
    return {"role": "tool", "content": text, **more}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


IMAGE = {"type": "image"}
CALLED = [user("Weather in Zürich?"), assistant("", tool_calls=[call("get_weather", {"city": "Zürich", "days": 2, "exact": True, "note": None, "at": [1, 2.0, 1e-7]})])]

# name -> (messages, further arguments)
CONVERSATIONS = {
    "one turn": ([user("Hello")], {}),
    "system": ([system("Be brief."), user("Hello")], {}),
    "empty system": ([system(""), user("Hello")], {}),
    "empty user": ([user("")], {}),
    "two turns": ([user("Hi"), assistant("Hello!"), user("How are you?")], {}),
    "ends with assistant": ([user("Hi"), assistant("Hello!")], {}),
    "system in the middle": ([user("Hi"), system("Now be rude."), user("Well?")], {}),
    "two systems": ([system("A"), system("B"), user("C")], {}),
    "only system": ([system("alone")], {}),
    "no messages": ([], {}),
    "surrounding space": ([system("  padded\n"), user("\n\n  text \t\n"), assistant(" ok \n"), user(" \u00a0end\u3000 ")], {}),
    "unicode": ([user("naïve e\u0301 日本語 عربى שלום हिन्दी 👩‍👩‍👧 \U0001f1e9\U0001f1ea \u200b\ufeff\x00\x1f"), assistant("ß ﬁ İ")], {}),
    "markup": ([user("<b>&amp;</b> \"quoted\" 'single' {{ not }} {% a %} {# tag #} \\n \\"), assistant("<|im_end|> <|eot_id|> <image>")], {}),
    "line ends": ([user("a\r\nb\rc\n\n"), assistant("\n")], {}),
    "unknown role": ([{"role": "critic", "content": "hmm"}, user("x")], {}),
    "extra fields": ([{"role": "user", "name": "ann", "content": "x", "weight": 0.1}], {}),
    "none content": ([user("x"), assistant(None)], {}),
    "missing content": ([user("x"), {"role": "assistant"}], {}),
    "tools": ([user("Weather?")], {"tools": [WEATHER, NO_ARGUMENTS]}),
    "tools and system": ([system("Use tools."), user("Weather?")], {"tools": [WEATHER]}),
    "empty tools": ([user("Weather?")], {"tools": []}),
    "tool call": (CALLED, {"tools": [WEATHER]}),
    "tool call without tools": (CALLED, {}),
    "tool result": (CALLED + [tool("12 °C \"cold\"")], {"tools": [WEATHER]}),
    "structured tool result": (CALLED + [tool({"temperature": 12.50, "unit": "°C", "list": [1, "a", None, True, {}], "deep": {"a": []}})], {"tools": [WEATHER]}),
    "two tool results": (CALLED + [tool("12"), tool("13"), assistant("Cold."), user("Thanks")], {"tools": [WEATHER]}),
    "ipython result": (CALLED + [{"role": "ipython", "content": "out"}], {}),
    "two calls": ([user("x"), assistant("Let me see.", tool_calls=[call("a", {}), call("b", {"k": "v"})]), tool("1"), tool("2")], {"tools": [WEATHER]}),
    "call with text": ([user("x"), assistant("Looking.\n", tool_calls=[call("a", {"q": "<é>"})])], {}),
    "call with null content": ([user("x"), assistant(None, tool_calls=[call("a", {"q": 1})])], {}),
    "flat call": ([user("x"), assistant("", tool_calls=[{"name": "a", "arguments": {"q": 1}}])], {}),
    "text arguments": ([user("x"), assistant("", tool_calls=[call("a", '{"q": 1}')])], {}),
    "tools in system": ([user("x")], {"tools": [WEATHER], "tools_in_user_message": False}),
    "builtin tools": ([user("x"), assistant("", tool_calls=[call("brave_search", {"query": "a b"})])], {"builtin_tools": ["brave_search", "code_interpreter"]}),
    "date": ([user("x")], {"date_string": "1 Jan 2001"}),
    "custom tools": ([user("x")], {"custom_tools": [NO_ARGUMENTS]}),
    "thinking": ([user("2+2?"), assistant("<think>\nfour\n</think>\n\n4"), user("3+3?"), assistant("<think>six</think>6")], {}),
    "thinking in a field": ([user("2+2?"), assistant("4", reasoning_content="\nfour\n"), user("again"), assistant("4", reasoning="same")], {}),
    "thinking and tools": ([user("x"), assistant("", reasoning_content="need a tool", tool_calls=[call("a", {})]), tool("r"), assistant("done", thinking="fine")], {"tools": [WEATHER]}),
    "empty thinking": ([user("x"), assistant("<think>\n\n</think>\n\ny"), user("z")], {}),
    "unclosed thinking": ([user("x"), assistant("<think>forever")], {}),
    "thinking off": ([user("x")], {"enable_thinking": False}),
    "thinking on": ([user("x")], {"enable_thinking": True}),
    "tool response by user": ([user("x"), assistant("y"), user("<tool_response>\nz\n</tool_response>")], {}),
    "text parts": ([user([{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}])], {}),
    "image and text": ([user([IMAGE, {"type": "text", "text": "What is this?"}])], {}),
    "text and image": ([user([{"type": "text", "text": "Look: "}, IMAGE])], {}),
    "images": ([user([IMAGE, {"type": "text", "text": "and"}, IMAGE, IMAGE]), assistant([{"type": "text", "text": "Nice."}]), user([IMAGE])], {}),
    "images by number": ([user([IMAGE, IMAGE, {"type": "text", "text": "?"}])], {"add_vision_id": True}),
    "image in system": ([system([{"type": "text", "text": "See "}, IMAGE]), user("ok")], {}),
    "no parts": ([user([])], {}),
    "placeholder in text": ([user([IMAGE, {"type": "text", "text": "typed <|image_pad|> <IMG_CONTEXT> <image>"}])], {}),
    "long": ([message for i in range(40) for message in (user(f"question {i}"), assistant(f"answer {i}"))], {}),
}

SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

DATA = {
    "messages": [user("first"), assistant("second"), user("third")],
    "text": "  Hello, <b>Wörld</b> & 'more' \n",
    "path": "a/b//c",
    "numbers": [3, 1, 2],
    "floats": [0.1, 1.0, 1e16, 1.5e-5, 123456789.125, 1e22, -0.0, 3.0e-4, 1e15, 2.5e300],
    "nested": {"b": [1, {"c": None}], "a": True, "é": "ü\u2028\x7f\"\\/"},
    "empty": {"list": [], "map": {}},
    "big": 12345678901234567890,
    "nothing": None,
    "flag": False,
}

SNIPPETS = """
{{ text }}|{{ nothing }}|{{ flag }}|{{ missing }}|{{ true }}|{{ True }}|{{ None }}|{{ none }}
{{ missing.attribute }}
{{ messages[7] }}|{{ messages[7].role }}
{{ nothing + 'a' }}
{{ 'a' + missing }}
{{ 'a' + 1 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.5 }}
{{ floats }}
{% for f in floats %}{{ f }} {% endfor %}
{{ floats | tojson }}
{{ nested }}
{{ nested | tojson }}
{{ nested | tojson(indent=2) }}
{{ nested | tojson(indent=4, sort_keys=true) }}
{{ nested | tojson(separators=(',', ':')) }}
{{ nested | tojson(ensure_ascii=true) }}
{{ nested | tojson(True, 1) }}
{{ empty | tojson(indent=4) }}{{ empty }}
{{ text | tojson }}
{{ missing | tojson }}
{{ big }} {{ big | tojson }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7.0 }} {{ 1 / 3 }}
{{ messages[::-1] | map(attribute='content') | join(',') }}
{{ messages[1:] | length }} {{ messages[:1][0].role }} {{ messages[-1].content }} {{ messages[0:2] | length }} {{ messages[-2:][0].content }}
{{ text[2:7] }}|{{ text[::-1] }}|{{ text[-3:] }}|{{ 'abc'[1] }}
{{ numbers[::-1] }} {{ numbers[::2] }} {{ numbers[5:] }} {{ numbers[:-1] }}
{{ text.strip() }}|{{ text.lstrip() }}|{{ text.rstrip() }}|{{ text.strip(' \n<') }}|{{ 'xxaxx'.strip('x') }}
{{ path.split('/') }} {{ path.split('/', 1) }} {{ path.split('/')[-1] }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }}
{{ path.rsplit('/', 1) }}
{{ 'a\nb\r\nc'.splitlines() }}
{{ path.startswith('a') }} {{ path.endswith('x') }} {{ path.startswith(('x', 'a')) }}
{{ path.upper() }} {{ path.title() }} {{ 'ABC'.lower() }} {{ 'hello world'.capitalize() }} {{ path.replace('/', '-') }} {{ path.replace('/', '-', 1) }}
{{ path.find('b') }} {{ path.find('z') }} {{ path.count('/') }} {{ '12'.isdigit() }} {{ 'a1'.isalnum() }} {{ 'ab'.isalpha() }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }}
{{ '-'.join(['a', 'b']) }}
{{ '{} and {}'.format('a', 1) }}
{{ '%s-%d' | format('a', 3) }}
{{ nested.get('a') }} {{ nested.get('zz') }} {{ nested.get('zz', 'd') }} {{ nested.keys() | list }} {{ nested.items() | list | length }}
{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in nested | items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in nested | dictsort %}{{ k }};{% endfor %}
{% for k in nested %}{{ k }};{% endfor %}
{{ 'a' in nested }} {{ 'z' in nested }} {{ 'ell' in text }} {{ 3 in numbers }} {{ 'x' not in text }}
{{ text is string }} {{ nested is mapping }} {{ numbers is iterable }} {{ text is iterable }} {{ nested is iterable }} {{ nothing is iterable }}
{{ text is sequence }} {{ numbers is sequence }} {{ nested is sequence }} {{ nothing is sequence }} {{ 3 is number }} {{ 3 is integer }} {{ 3.5 is float }} {{ true is boolean }}
{{ missing is defined }} {{ nothing is defined }} {{ nothing is none }} {{ missing is none }} {{ missing is undefined }} {{ flag is false }} {{ flag is true }} {{ 1 is true }} {{ flag is sameas false }}
{{ tools is defined }} {{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ strftime_now is defined }} {{ raise_exception is defined }}
{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% if m.role == 'assistant' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}
{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{% endfor %}{{ x }}
{% if true %}{% set y = 5 %}{% endif %}{{ y }}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in [] %}x{% else %}none{% endfor %}
{% for i in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }} {% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% endfor %}
{% for m in missing %}x{% endfor %}ok
{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}
{% macro tag(name, value='d') %}<{{ name }}>{{ value }}</{{ name }}>{% endmacro %}{{ tag('a') }}{{ tag('b', value=1) }}
{% macro walk(x) %}{% if x is mapping %}{% for k, v in x.items() %}{{ k }}({{ walk(v) }}){% endfor %}{% else %}{{ x }}{% endif %}{% endmacro %}{{ walk(nested) }}
{% call(x) caller_test() %}{% endcall %}
{% set block %}in {{ numbers[0] }}{% endset %}[{{ block }}]
{% filter upper %}shout{% endfilter %}
{% generation %}kept {{ numbers[0] }}{% endgeneration %}!
a{%- generation -%}  b  {%- endgeneration -%}  c
{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='content') | list }}
{{ messages | selectattr('role', 'in', ['user']) | list | length }} {{ numbers | select('odd') | list }} {{ numbers | reject('odd') | list }} {{ numbers | map('string') | list }}
{{ messages | map(attribute='role') | unique | list }} {{ numbers | sort }} {{ numbers | sort(reverse=true) }} {{ numbers | sum }} {{ numbers | max }} {{ numbers | min }} {{ numbers | first }} {{ numbers | last }} {{ numbers | reverse | list }}
{{ missing | default('d') }} {{ nothing | default('d') }} {{ nothing | default('d', true) }} {{ '' or 'x' }} {{ nothing or 'y' }} {{ 'a' and 'b' }} {{ not nothing }}
{{ text | trim }}|{{ text | upper }}|{{ text | length }}|{{ text | replace('l', 'L') }}|{{ 'a b' | title }}|{{ text | trim | indent(4) }}|{{ 'ab' | list }}|{{ 'x' * 3 }}
{{ 3.7 | int }} {{ '42' | int }} {{ 'x' | int }} {{ '1.5' | float }} {{ 3.14159 | round(2) }} {{ -3 | abs }} {{ 5 | string }} {{ [1, 2] | string }} {{ true | string }}
{{ text | safe }} {{ text | e }} {{ text | escape }}
{{ (1, 2) }} {{ (1,) }} {{ [1, 'a', none, true, 1.5, [], {}] }} {{ {'k': 'it\\'s', 'n': {'m': "\\n"}} }} {{ 'plain' }}
{{ 'yes' if flag else 'no' }} {{ 'yes' if not flag }} {{ 'x' if flag }}|
{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 < 2 <= 2 }} {{ [1, 2] == [1, 2] }} {{ {'a': 1} == {'a': 1} }} {{ none == false }} {{ true == 1 }}
{{ dict(a=1, b='x') }} {{ dict(a=1).a }}
{{ messages[0]['role'] }} {{ messages[0].role }} {{ messages[0]["content"][0] }} {{ nested['b'][1]['c'] }} {{ nested.b[0] }}
{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %j %A %B %a %p %I %y %% %-d') }}
{{ raise_exception('no: ' ~ text) }}
{% if nothing is none and numbers | length > 2 %}yes{% elif flag %}maybe{% else %}no{% endif %}
{%- for m in messages -%} {{- m.role -}} {%- endfor -%}
   {% if true %}   indented
   {% endif %}   after
{# comment #}  x {#- trimmed -#}  y
{% raw %}{{ raw }}{% endraw %}
{{ "double 'inner' \\t tab" }}|{{ 'single "inner" \\\\ \\u00e9' }}
{{ [1, 2] + [3] }} {{ numbers + [4] }} {{ 'a' 'b' }}
{{ text.unknown() }}
{{ nothing.x }}
{{ text | nosuchfilter }}
{{ x is nosuchtest }}
{{ nosuchfunction() }}
{% if %}
{{ unclosed
{% for %}{% endfor %}
{% nosuchtag %}
{{ 1 / 0 }}
{{ numbers['x'] }}|{{ nested[0] }}|{{ text['x'] }}
{{ messages | tojson }}
{{ messages[1:] | tojson }}
{{ loop }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set messages = messages[1:] %}{{ messages | length }}
{% with v = 3 %}{{ v }}{% endwith %}{{ v }}
{{ range(3) | list }} {{ range(1, 7, 2) | list }} {{ range(5, 0, -2) | list }}
{{ numbers | join('-') }} {{ messages | join('|', attribute='role') }} {{ [1.0, true, none] | join(' ') }}
{{ numbers | batch(2) | list }} {{ 'a,b' | replace(',', '') }} {{ nested | length }} {{ numbers | count }}
{{ bos_token }}{{ eos_token }}
{{ text.strip().split(',')[0] | upper ~ '!' }}
{{ nested.items() | list }}
{{ 'ﬁ İ ß'.upper() }} {{ 'ẞ Σς'.lower() }}
"""


def rendered(template, messages, arguments):
    try:
        return render_jinja_template([messages], chat_template=template, **arguments)[0][0]
    except Exception:
        return None


def main():
    cases = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        for name, (messages, arguments) in CONVERSATIONS.items():
            for prompt in (False, True):
                text = rendered(path.read_text(), messages, {**SPECIAL, "add_generation_prompt": prompt, **arguments})
                cases.append({"template": path.name, "conversation": name, "prompt": prompt, "text": text})
    snippets = []
    for source in SNIPPETS.strip("\n").split("\n"):
        # "\n" is written out, since a snippet is one line here.
        source = source.replace("\\n", "\n") if "tojson" not in source else source
        data = {key: value for key, value in DATA.items() if key != "messages"}
        snippets.append({"source": source, "text": rendered(source, DATA["messages"], {**SPECIAL, **data})})
    document = {
        "conversations": {name: {"messages": messages, "arguments": arguments} for name, (messages, arguments) in CONVERSATIONS.items()},
        "special": SPECIAL,
        "data": DATA,
        "cases": cases,
        "snippets": snippets,
    }
    lines = [f'"{key}": {json.dumps(document[key], ensure_ascii=False)}' for key in ("conversations", "special", "data")]
    for key in ("cases", "snippets"):
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(case, ensure_ascii=False) for case in document[key]) + "\n]")
    (HERE / "templates.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(cases)} renderings of {len(CONVERSATIONS)} conversations, {sum(case['text'] is None for case in cases)} refused")
    print(f"{len(snippets)} snippets, {sum(case['text'] is None for case in snippets)} refused")


if __name__ == "__main__":
    main()
