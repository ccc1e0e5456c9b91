# SPDX-License-Identifier: Apache-2.0
"""Writes corner_cases.jsonl and template_cases.jsonl beside itself: what the tokenizers library (0.22.2) and Jinja2
(3.1.6, set up as transformers does) make of small inputs, one corner each. Tests compare with these files."""
import json
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

HERE = Path(__file__).parent
META = "\u2581"


def added(content, **flags):
    token = dict(content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    return {**token, **flags}


def spec(vocab, merges=(), tokens=(), normalizer=None, pre=None, post=None, decoder=None, **model):
    vocab = {piece: i for i, piece in enumerate(vocab)}
    ids, next_id = [], len(vocab)
    for token in tokens:
        known = vocab.get(token["content"])
        ids.append({"id": next_id if known is None else known, **token})
        next_id += known is None
    base = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None, end_of_word_suffix=None,
                fuse_unk=False, byte_fallback=False, ignore_merges=False)
    return dict(version="1.0", truncation=None, padding=None, added_tokens=ids, normalizer=normalizer, pre_tokenizer=pre,
                post_processor=post, decoder=decoder, model={**base, **model, "vocab": vocab, "merges": list(merges)})


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def metaspace(scheme, split=True):
    return {"type": "Metaspace", "replacement": META, "prepend_scheme": scheme, "split": split}


def split(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


PREPEND = {"type": "Prepend", "prepend": META}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": META}
ABC = list("abc \u2581xyz<>\n") + ["ab", "bc", "abc", META + "a"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
LLAMA_DECODER = sequence("decoders", {"type": "Replace", "pattern": {"String": META}, "content": " "},
                         {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
TEXTS = ["", " ", "  ", "a", " a", "a ", "abc", "abcabc", "a b", "ab  c", "<s>", "<s>a", "<s> a", " <s> a ", "a<s>b", "x<s>",
         "a\nb", "\u00e9", "a\u00e9b", "\u00e9\u00e9", "\U0001f600", "cab", "<s><s>", "a <s>  b", "\u3000a\u3000<s>\u3000b"]


def corners():
    s = added("<s>", special=True)
    yield "plain", spec(ABC, ["a b", "b c", "ab c"]), []
    yield "equal_rank_leftmost", spec(["a", "aa", "aaa"], ["a a", "aa a"]), ["aaa", "aaaa", "aaaaa"]
    yield "later_merge_wins", spec(["a", "b", "ab", "ba"], ["a b", "b a", "a b"]), ["aba", "bab"]
    yield "merge_array", spec(["a", " ", "a ", "b"], [["a", " "]]), ["a a b"]
    yield "ignore_merges", spec(["a", "b", "c", "abc"], [], ignore_merges=True, pre=split("abc", "Isolated")), ["abca", "ab"]
    yield "unk", spec(["<unk>"] + ABC, unk_token="<unk>"), ["\u00e9a\u00e9\u00e9b"]
    yield "unk_fused", spec(["<unk>"] + ABC, unk_token="<unk>", fuse_unk=True), ["\u00e9a\u00e9\u00e9b"]
    yield "no_unk_drops", spec(ABC), ["\u00e9a\u00e9b"]
    yield "byte_fallback", spec(["<unk>"] + ABC + BYTES, unk_token="<unk>", byte_fallback=True, decoder=LLAMA_DECODER), []
    yield "byte_fallback_with_holes", spec(["<unk>"] + ABC + BYTES[:0xC3] + BYTES[0xC4:], unk_token="<unk>", fuse_unk=True,
                                           byte_fallback=True), ["\u00e9\u4e2da", "a\u4e2d\u00e9\u00e9"]
    yield "prefix_and_suffix", spec(["a", "##b", "c</w>", "##c</w>", "a##b", "ab", "abc</w>"],
                                    ["a ##b", "ab ##c</w>"], continuing_subword_prefix="##", end_of_word_suffix="</w>",
                                    decoder={"type": "BPEDecoder", "suffix": "</w>"}), ["abc", "c", "acb"]
    for flags in ({"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"normalized": True}):
        yield "added_" + "_".join(flags), spec(ABC, tokens=[added("<s>", special=True, **flags)]), ["a_<s>", "\u4e2d<s>", "\u0301<s>"]
    yield "added_longest", spec(ABC, tokens=[added("ab"), added("abc"), added("b")]), ["abcab", "aab", "bab"]
    yield "added_in_vocabulary", spec(ABC, tokens=[added("b"), added("<s>")]), []
    yield "spaces_stripped_once", spec(ABC, tokens=[added("x", rstrip=True), added("  ", lstrip=True), added("   ")]), ["x   a", "x    <s>", "x  "]
    yield "normalized_after_prepend", spec(ABC, tokens=[added("<s>", normalized=True)], normalizer=sequence("normalizers", PREPEND, SPACES)), ["<s>a", "b <s>", "b<s>"]
    yield "normalized_lowercase", spec(ABC, tokens=[added("ABC", normalized=True)], normalizer={"type": "Lowercase"}), ["xABCx", "xabc", "Abc"]
    yield "prepend_each_span", spec(ABC, [[META, "a"]], tokens=[s], normalizer=sequence("normalizers", PREPEND, SPACES), decoder=LLAMA_DECODER), []
    for scheme in ("first", "always", "never"):
        for cut in (True, False):
            yield f"metaspace_{scheme}_{cut}", spec(ABC, [[META, "a"]], tokens=[s], pre=metaspace(scheme, cut), decoder=metaspace(scheme, cut)), []
    yield "metaspace_first_after_strip", spec(ABC, pre=metaspace("first"), normalizer={"type": "Strip", "strip_left": True, "strip_right": True}), [" a ", "a"]
    yield "metaspace_first_after_replace", spec(ABC, pre=metaspace("first"), normalizer={"type": "Replace", "pattern": {"String": "ab"}, "content": "x"}), ["abc", "ab", "cab"]
    yield "metaspace_old_spelling", spec(ABC, pre={"type": "Metaspace", "replacement": META, "add_prefix_space": True}), []
    yield "byte_level_prefix", spec(["a", "b", "\u0120", "\u00c3", "\u00a9", "\u0120a"], [["\u0120", "a"]], tokens=[s],
                                    pre={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                                    decoder={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}), ["a a", "aa  a"]
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield f"split_{behavior}_{invert}", spec(ABC, ["a b", "b c", "ab c"], pre=split("b", behavior, invert)), ["abcb", "bb", "abbc", "babb"]
    yield "split_empty_matches", spec(ABC, ["a b"], pre=split("x*", "Isolated")), ["abx", "xxab"]
    yield "split_line_ends", spec(ABC, ["a b"], pre=split(r"\s+$", "Isolated")), ["a \nb", "a\n\n", "ab \n"]
    yield "split_interval_plus", spec(ABC, ["a b"], pre=split(r"[abc]{1,2}+", "Isolated")), ["abcab"]
    yield "split_class_and", spec(ABC, ["a b"], pre=split(r"[a-c&&[^b]]", "Isolated")), ["abab"]
    yield "split_vowel_separator", spec(["\u180e", "a", "a\u180e"], [["a", "\u180e"]], pre=split(r"\s", "Isolated")), ["a\u180ea"]
    yield "split_next_line", spec(["\x85", "a", "a\x85"], [["a", "\x85"]], pre=split(r"\s", "Isolated")), ["a\x85a"]
    yield "digits", spec(list("0123") + ["12", "\u00b2", "\u216b"], ["1 2"], pre={"type": "Digits", "individual_digits": True}), ["12", "1\u00b2\u216b"]
    yield "digit_runs", spec(list("a0123") + ["12", "a1"], ["1 2", "a 1"], pre={"type": "Digits", "individual_digits": False}), ["a12", "1a1"]
    yield "nfkc_then_split", spec(list("abfi12"), normalizer=sequence("normalizers", {"type": "NFKC"}, {"type": "StripAccents"})), ["\ufb01\u00e1\u00bd", "\uff41\u0301"]
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [len(ABC)], "tokens": ["<s>"]}}}
    yield "template", spec(ABC, tokens=[s], post=post), []
    yield "no_decoder", spec(ABC, tokens=[s]), []


def write_corners():
    with open(HERE / "corner_cases.jsonl", "w", encoding="utf-8") as file:
        for name, tokenizer, more in corners():
            t = Tokenizer.from_str(json.dumps(tokenizer))
            lines = []
            for text in TEXTS + more:
                ids = t.encode(text, add_special_tokens=False).ids
                t.encode_special_tokens = True
                unparsed = t.encode(text, add_special_tokens=False).ids
                t.encode_special_tokens = False
                lines.append([text, ids, t.encode(text).ids, unparsed, t.decode(ids, skip_special_tokens=False), t.decode(ids)])
            file.write(json.dumps({"name": name, "tokenizer": tokenizer, "lines": lines}, separators=(",", ":")) + "\n")


MESSAGES = [{"role": "user", "content": "Hello  world\n", "n": 3},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHi \u00e9 \U0001f600", "calls": [{"name": "f", "arguments": {"a": 1, "b": [1, 2.5, None, True]}}]},
            {"role": "tool", "content": "it's \"x\"", "items": 5}]
VARIABLES = {"bos_token": "<s>", "seven": 7, "half": 2.5, "list": [3, 1, 2], "words": ["b", "A", "c"], "pairs": {"x": 1, "y": "z"}, "nothing": None, "text": "The quick-brown fox"}

TEMPLATES = r"""
{%- for m in messages[::-1] %}{{ loop.index0 }}{{ m.role }}{{ loop.previtem.role if not loop.first }};{% endfor %}
{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'tool' %}{% set ns.found = true %}{% endif %}{% set ns.n = ns.n + m.content|length %}{% endfor %}{{ ns.found }} {{ ns.n }}
{% set content = messages[1].content %}{{ content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}|{{ content.split('</think>')[-1].lstrip('\n') }}
{{ messages[1].calls[0] | tojson }}{{ messages[1].calls | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ [[]] | tojson(indent=1) }}
{{ messages[1].calls[0].arguments }}{{ [1.0, 1e16, 1e-5, 123456789.125, true, none, "it's", '"', "\n\t\\", 'é'] }}{{ (1,) }}{{ (1, 'a') }}
{{ messages[2].items() | length }}{{ messages[2]['items'] }}{{ messages[0].keys() | list }}{{ messages[0].get('zz', 'd') }}{{ messages[0].get('zz') }}
{% for k, v in pairs.items() if k != 'y' %}{{ k }}={{ v }}{% else %}none{% endfor %}{% for x in [] %}{% else %}empty{% endfor %}
{% macro f(a, b='B', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f('x', 'y') ~ f(b=1, a=0) }}
{% macro f() %}<{{ caller(2) }}>{% endmacro %}{% call(x) f() %}{{ x * 2 }}{% endcall %}
{% set x = 1 %}{% for i in list %}{% set x = i %}{{ x }}{% endfor %}{{ x }}{% if true %}{% set x = 9 %}{% endif %}{{ x }}
{% set block %}a{{ seven }}b{% endset %}{{ block | upper }}{% set low | lower | trim %}  ABC {% endset %}{{ low }}
{% filter upper | replace('B', 'x') %}abc{% endfilter %}{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}
{% for i in range(10) %}{% if i is odd %}{% continue %}{% endif %}{% if i > 6 %}{% break %}{% endif %}{{ i }}{{ ',' if not loop.last }}{% endfor %}
{{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % -3 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }} {{ 1 + 2 * 3 }} {{ (1 ~ 4) + "x" }} {{ -2 ** 2 }}
{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' in 'abc' }} {{ 'x' not in pairs }} {{ 2 in list }} {{ [1,2] == (1,2) }} {{ 'a' < 'b' }} {{ not 1 or 2 and 3 }}
{{ undefined_name }}|{{ undefined_name is defined }}|{{ undefined_name | default('d') }}|{{ '' | default('d', true) }}|{{ pairs.missing is undefined }}|{{ nothing }}|{{ nothing is none }}
{{ text[0] }}{{ text[-3:] }}{{ text[::-1] }}{{ text[4:9] }}{{ text[100:] }}{{ list[1:] }}{{ list[-1] }}{{ list[9] is defined }}{{ 'aé😀b'[1:3] }}{{ 'é😀' | length }}
{{ text | upper }}{{ text | lower }}{{ text | title }}{{ text | capitalize }}{{ text.title() }}{{ '  x ' | trim }}.{{ 'xxaxx' | trim('x') }}{{ text | replace('o', '0') }}{{ text | wordcount }}
{{ words | join('-') }}{{ list | sort | list }}{{ words | sort }}{{ words | sort(reverse=true, case_sensitive=true) }}{{ list | sum }}{{ list | max }}{{ words | min }}{{ list | first }}{{ list | last }}{{ list | reverse | list }}{{ [1,1,2] | unique | list }}
{{ messages | map(attribute='role') | join(' ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('n') | map(attribute='role') | list }}{{ list | select('odd') | list }}{{ list | reject('>', 2) | list }}{{ words | map('upper') | list }}
{{ 'a,b,,c'.split(',') }}{{ 'a b  c '.split() }}{{ 'a b c'.split(None, 1) }}{{ 'a b c'.rsplit(' ', 1) }}{{ 'a\nb\r\nc'.splitlines() }}{{ 'a=b=c'.partition('=') }}{{ '-'.join(words) }}{{ 'abc'.find('c') }}{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('c') }}
{{ '%s is %d or %.2f%%' | format('x', 3, 2.5) }}{{ '%5s|%-5s|%05d' % ('a', 'b', 42) }}{{ '{} {1} {name}'.format(1, 2, name='n') if false else '{0}{1}{0}'.format('a', 'b') }}
{{ '42' | int + 1 }}{{ 'x' | int }}{{ 'x' | int(5) }}{{ 3.9 | int }}{{ '2.5' | float }}{{ 2.567 | round(1) }}{{ 2.5 | round }}{{ -3 | abs }}{{ 3 | string + 'a' }}{{ 'abc' | list }}{{ pairs | list }}{{ pairs | items | list }}{{ pairs | dictsort }}
{{ 'a' 'b' ~ 1 ~ none ~ true ~ 1.5 }}{{ 'A\x42\u00e9\n\q' }}{{ "a'b" ~ 'c"d' }}{{ [1, 2,] + [3] }}{{ [1] * 3 }}{{ 'ab' * 2 }}{{ {'a': 1, 'a': 2} }}{{ {1: 'x'}[1.0] }}
{{ 1 is number }}{{ 1.5 is float }}{{ true is integer }}{{ true is boolean }}{{ 'a' is string }}{{ [] is sequence }}{{ {} is mapping }}{{ 'a' is iterable }}{{ 6 is divisibleby 3 }}{{ 1 is not none }}{{ 'a' is in ['a'] }}{{ 2 is sameas 2 }}{{ 3 is odd }}{{ 'A' is upper }}{{ f is callable }}
   {% if true %}   
  a
   {%- endif %}   
 b {#- c -#}   d {# e #}
{# f #}
g
  {%+ if true %}x{% endif +%}
y {{- ' z ' -}}  w
{% raw %}{{ not }} {% a %}{% endraw %}{%- raw -%}  s  {%- endraw -%}  t
{% generation %}g{% endgeneration %}{% if seven == 7 %}seven{% elif seven %}other{% else %}none{% endif %}{{ loop is defined }}{{ dict(a=1, b=2) }}{{ range(5, 0, -2) | list }}
{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }}{{ loop.cycle('x', 'y') }}{{ loop.revindex }}{{ loop.length }}{{ loop.changed(a > 2) }}{% endfor %}
{% for x in list %}{% if x %}{% continue %}{% endif %}a{% else %}all skipped{% endfor %}{% for x in list %}{% break %}{% else %}broken{% endfor %}{% for x in list %}{{ x }}{% else %}never{% set y = 1 %}{% endfor %}{{ y is defined }}
{{ raise_exception('stop here') }}
{{ messages.append(1) }}
{{ undefined_name.x }}
{{ 1 + 'a' }}
{{ none | length }}
{{ pairs.x.y.z }}
"""


def write_templates():
    class Generation(jinja2.ext.Extension):  # the tag that transformers knows: the body as it is
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation])
    environment.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    environment.globals["raise_exception"] = raise_exception
    lines = TEMPLATES.strip("\n").split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("   {% if true %}"))
    templates = lines[:at] + ["\n".join(lines[at:at + 9]) + "\n"] + lines[at + 9:]
    with open(HERE / "template_cases.jsonl", "w", encoding="utf-8") as file:
        file.write(json.dumps({"messages": MESSAGES, "variables": VARIABLES}, separators=(",", ":")) + "\n")
        for template in templates:
            case = {"template": template}
            try:
                case["rendered"] = environment.from_string(template).render(messages=MESSAGES, add_generation_prompt=True, tools=None, documents=None, **VARIABLES)
            except Exception as error:
                case["error"] = str(error)
            file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    write_corners()
    write_templates()
