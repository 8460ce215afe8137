r"""A Python regular expression as one terminal of a Lark grammar, for llguidance.

The oracle is `re.fullmatch`: what the terminal accepts, it accepts. llguidance's own regex syntax
knows no anchors; here `\b`, `\B`, `^`, `$`, `\A`, `\Z` are resolved by looking at what stands on
both sides of them, and look-ahead at the top level becomes an intersection. Python's parser does
the parsing. Back-references, look-behind, atomic groups and possessive repeats are refused: they
are not regular, or not worth it.

How anchors go. A string is put into a class by its first and last character: W (word) or N (not).
`_pieces` splits a node into its strings by class, given the class of the character before it (or S,
the start) and after it (or E, the end): there every anchor is simply true or false.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

try:
    from re import _constants as ops  # type: ignore[attr-defined]
    from re import _parser as parser  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as ops
    import sre_parse as parser

from common.errors import BadRequest

MAX_EXPANSION = 64  # copies of a repeated part that holds an anchor
MAX_TERMINALS = 2000

Node: TypeAlias = tuple[Any, Any]  # (operation, arguments), as Python's parser gives them
Nodes: TypeAlias = Sequence[Node]
Class: TypeAlias = "tuple[str, str] | None"  # of the first and last character; None: empty string
Pieces: TypeAlias = dict[Class, list[str]]  # per class the Lark expressions of its strings

_WORD = r"\p{L}\p{N}_"
_ASCII_WORD = "0-9A-Za-z_"
_SPACE = r"\s\x{1c}-\x{1f}"  # Python counts the separators in
_ASCII_SPACE = r"\x{20}\x{9}-\x{d}"
_ANY = r"(?s:.)"
_INSIDE = {
    ("W", "W"): f"[{_WORD}]({_ANY}*[{_WORD}])?",
    ("W", "N"): f"[{_WORD}]{_ANY}*[^{_WORD}]",
    ("N", "W"): f"[^{_WORD}]{_ANY}*[{_WORD}]",
    ("N", "N"): f"[^{_WORD}]({_ANY}*[^{_WORD}])?",
}
_BOTH = frozenset("WN")


def regex_to_lark(pattern: str) -> str:
    """A grammar whose only terminal matches what `re.fullmatch` does. Raises BadRequest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd but valid patterns
            tree = parser.parse(pattern)
        return _Translation(tree.state.flags).grammar(list(tree))
    except (re.error, OverflowError) as error:
        raise BadRequest(f"not a valid regular expression: {error}") from None
    except RecursionError:
        raise BadRequest("the regular expression is nested too deeply") from None


class _Translation:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._definitions: list[str] = []
        self._known: dict[tuple[Any, ...], Pieces] = {}
        self._kept: list[Any] = []  # what `_known` names by id must live
        if flags & re.MULTILINE:
            raise BadRequest("regular expression: the flag (?m) is not supported")

    def grammar(self, nodes: Nodes) -> str:
        if not any(map(_is_sensitive, nodes)):
            return f"start: T\nT: {_quoted(_plain(nodes, self._flags))}"
        found = self._sequence(nodes, 0, "S", "E", self._flags)
        alternatives = [expression for group in found.values() for expression in group]
        if not alternatives:
            raise BadRequest("nothing matches this regular expression")
        lines = ["start: T", "T: " + " | ".join(alternatives), *self._definitions]
        return "\n".join(lines)

    # --- nodes with anchors ----------------------------------------------------------------------

    def _pieces(self, node: Node, before: str, after: str, flags: int) -> Pieces:
        op, args = node
        if op is ops.AT:
            return {None: ['""']} if _holds(args, before, after) else {}
        if op is ops.SUBPATTERN:
            _, added, removed, inner = args
            return self._sequence(inner, 0, before, after, (flags | added) & ~removed)
        if op is ops.BRANCH:
            found: Pieces = {}
            for branch in args[1]:
                for key, alternatives in self._sequence(branch, 0, before, after, flags).items():
                    found.setdefault(key, []).extend(alternatives)
            return found
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            return self._sequence(_expanded(args), 0, before, after, flags)
        raise BadRequest("regular expression: look-around is supported at the top level only")

    def _sequence(self, nodes: Nodes, first: int, before: str, after: str, flags: int) -> Pieces:
        key = (id(nodes), first, before, after, flags)
        if key not in self._known:
            self._kept.append(nodes)
            found = self._compute(nodes, first, before, after, flags)
            self._known[key] = {cls: [self._name(them)] for cls, them in found.items() if them}
        return self._known[key]

    def _compute(self, nodes: Nodes, first: int, before: str, after: str, flags: int) -> Pieces:
        if first == len(nodes):
            return {None: ['""']}
        op, args = nodes[first]
        if op in (ops.ASSERT, ops.ASSERT_NOT):
            return self._guarded(nodes, first, before, after, flags)
        end = first
        while end < len(nodes) and not _is_sensitive(nodes[end]):
            end += 1
        found: Pieces = {}
        for beside in {"W", "N", after}:
            if end > first:
                head = self._plain_pieces(nodes[first:end], flags)
            else:
                head = self._pieces(nodes[first], before, beside, flags)
            for head_class, expressions in head.items():
                passed = head_class[1] if head_class else before
                rest = self._sequence(nodes, max(end, first + 1), passed, after, flags)
                for rest_class, others in rest.items():
                    if (rest_class[0] if rest_class else after) == beside:
                        joined = _join(head_class, rest_class)
                        both = [f"{a} {b}" for a in expressions for b in others]
                        found.setdefault(joined, []).extend(both)
        return found

    def _guarded(self, nodes: Nodes, first: int, before: str, after: str, flags: int) -> Pieces:
        """A look-ahead: what follows, up to the end, must (or must not) begin like this."""
        op, (direction, ahead) = nodes[first]
        if direction < 0:
            raise BadRequest("regular expression: look-behind is not supported")
        if after != "E":
            raise BadRequest("regular expression: look-around is supported at the top level only")
        ahead = list(ahead)
        to_end = bool(ahead) and ahead[-1] in ((ops.AT, ops.AT_END), (ops.AT, ops.AT_END_STRING))
        if to_end:
            ahead = ahead[:-1]
        if any(map(_is_sensitive, ahead)):
            raise BadRequest("regular expression: an anchor inside look-around is not supported")
        text = _plain(ahead, flags) + ("" if to_end else f"{_ANY}*")
        guard = self._name([_quoted(text)])
        rest = self._sequence(nodes, first + 1, before, after, flags)
        sign = "" if op is ops.ASSERT else "~"
        return {
            key: [f"({expression} & {sign}{guard})" for expression in expressions]
            for key, expressions in rest.items()
        }

    def _plain_pieces(self, nodes: Nodes, flags: int) -> Pieces:
        whole = self._name([_quoted(_plain(nodes, flags))])
        found: Pieces = {}
        if _min_width(nodes) == 0:
            found[None] = ['""']
        firsts, lasts = _edge(nodes, flags), _edge(nodes, flags, from_end=True)
        for first in sorted(firsts):
            for last in sorted(lasts):
                is_certain = len(firsts) == len(lasts) == 1 and None not in found
                inside = _quoted(_INSIDE[first, last])
                found[first, last] = [whole if is_certain else f"({whole} & {inside})"]
        return found

    def _name(self, alternatives: list[str]) -> str:
        """A terminal of its own, so that text is never repeated."""
        if len(alternatives) == 1 and (alternatives[0] == '""' or alternatives[0].isidentifier()):
            return alternatives[0]
        if len(self._definitions) >= MAX_TERMINALS:
            raise BadRequest("the regular expression has too many anchors")
        name = f"X{len(self._definitions)}"
        self._definitions.append(f"{name}: " + " | ".join(alternatives))
        return name


def _join(left: Class, right: Class) -> Class:
    if left is None or right is None:
        return right if left is None else left
    return left[0], right[1]


def _holds(anchor: Any, before: str, after: str) -> bool:
    if anchor in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
        return before == "S"
    if anchor in (ops.AT_END, ops.AT_END_STRING):
        return after == "E"
    is_boundary = (before == "W") != (after == "W")
    # Python: \B does not match in an empty string.
    return is_boundary if anchor is ops.AT_BOUNDARY else not is_boundary and before + after != "SE"


def _is_sensitive(node: Node) -> bool:
    """Is there an anchor or a look-around in it?"""
    op, args = node
    if op in (ops.AT, ops.ASSERT, ops.ASSERT_NOT):
        return True
    if op is ops.SUBPATTERN:
        return any(map(_is_sensitive, args[3]))
    if op is ops.BRANCH:
        return any(_is_sensitive(node) for branch in args[1] for node in branch)
    return op in (ops.MAX_REPEAT, ops.MIN_REPEAT) and any(map(_is_sensitive, args[2]))


def _expanded(args: tuple[int, int, Any]) -> list[Node]:
    least, most, inner = args
    if most > MAX_EXPANSION:
        raise BadRequest("regular expression: an anchor inside an endless or long repeat")
    once = (ops.SUBPATTERN, (None, 0, 0, inner))
    maybe = (ops.BRANCH, (None, [[once], []]))
    return [once] * least + [maybe] * (most - least)


# --- nodes without anchors: text ------------------------------------------------------------------


def _plain(nodes: Nodes, flags: int) -> str:
    return "".join(_plain_node(node, flags) for node in nodes)


def _plain_node(node: Node, flags: int) -> str:
    op, args = node
    if op is ops.LITERAL:
        return _folded(_character(args), flags)
    if op is ops.NOT_LITERAL:
        return _folded(f"[^{_character(args)}]", flags)
    if op is ops.ANY:
        return _ANY if flags & re.DOTALL else r"[^\x{a}]"
    if op is ops.IN:
        return _folded(_set(args, flags), flags)
    if op is ops.SUBPATTERN:
        _, added, removed, inner = args
        return f"(?:{_plain(inner, (flags | added) & ~removed)})"
    if op is ops.BRANCH:
        return "(?:" + "|".join(_plain(branch, flags) for branch in args[1]) + ")"
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        least, most, inner = args
        bound = "" if most is ops.MAXREPEAT else str(most)
        return f"(?:{_plain(inner, flags)}){{{least},{bound}}}"
    raise BadRequest(f"regular expression: {str(op).lower()} is not supported")


def _set(items: Nodes, flags: int) -> str:
    parts = []
    sign = "^" if items[0][0] is ops.NEGATE else ""
    for op, value in items[1:] if sign else items:
        if op is ops.LITERAL:
            parts.append(_character(value))
        elif op is ops.RANGE:
            parts.append(f"{_character(value[0])}-{_character(value[1])}")
        else:
            parts.append(_category(value, flags, is_excluded=bool(sign)))
    return f"[{sign}{''.join(parts)}]"


def _category(category: Any, flags: int, *, is_excluded: bool) -> str:
    r"""Inside of [...]. Of `\d` and `\s` only ASCII is generated, but all of Unicode excluded."""
    is_ascii = bool(flags & re.ASCII)
    word = _ASCII_WORD if is_ascii else _WORD
    digit, space = ("0-9", _ASCII_SPACE) if is_ascii else (r"\p{Nd}", _SPACE)
    return {
        ops.CATEGORY_DIGIT: digit if is_excluded else "0-9",
        ops.CATEGORY_NOT_DIGIT: "[^0-9]" if is_excluded else f"[^{digit}]",
        ops.CATEGORY_WORD: word,
        ops.CATEGORY_NOT_WORD: f"[^{word}]",
        ops.CATEGORY_SPACE: space if is_excluded else _ASCII_SPACE,
        ops.CATEGORY_NOT_SPACE: f"[^{_ASCII_SPACE if is_excluded else space}]",
    }[category]


def _character(code: int) -> str:
    if 0xD800 <= code < 0xE000:
        raise BadRequest("regular expression: a lone surrogate is not a character")
    character = chr(code)
    return character if character.isascii() and character.isalnum() else f"\\x{{{code:x}}}"


def _folded(text: str, flags: int) -> str:
    return f"(?i:{text})" if flags & re.IGNORECASE else text


def _quoted(text: str) -> str:
    return f"/{text}/" if text else '""'


def _min_width(nodes: Nodes) -> int:
    width = 0
    for op, args in nodes:
        if op is ops.SUBPATTERN:
            width += _min_width(args[3])
        elif op is ops.BRANCH:
            width += min(_min_width(branch) for branch in args[1])
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            width += min(1, args[0]) * _min_width(args[2])
        else:
            width += 1
    return width


def _edge(nodes: Nodes, flags: int, *, from_end: bool = False) -> frozenset[str]:
    """Which classes the first (or last) character of a match may have; may name too many."""
    found: frozenset[str] = frozenset()
    for node in reversed(nodes) if from_end else nodes:
        op, args = node
        if op is ops.LITERAL:
            found |= _class_of(args)
        elif op is ops.IN:
            found |= _classes_of_set(args, flags)
        elif op is ops.SUBPATTERN:
            found |= _edge(args[3], flags, from_end=from_end)
        elif op is ops.BRANCH:
            found = found.union(*(_edge(b, flags, from_end=from_end) for b in args[1]))
        elif op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            found |= _edge(args[2], flags, from_end=from_end)
        else:
            return _BOTH
        if _min_width([node]) > 0:
            break
    return found


def _class_of(code: int) -> frozenset[str]:
    character = chr(code)
    return frozenset("W" if character.isalnum() or character == "_" else "N")


def _classes_of_set(items: Nodes, flags: int) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for op, value in items:
        if op is ops.LITERAL:
            found |= _class_of(value)
        elif op is ops.RANGE and value[1] < 128:
            found = found.union(*(_class_of(code) for code in range(value[0], value[1] + 1)))
        elif op is ops.CATEGORY and value in (ops.CATEGORY_DIGIT, ops.CATEGORY_WORD):
            found |= {"W"}
        elif op is ops.CATEGORY and value is ops.CATEGORY_SPACE:
            found |= {"N"}
        else:
            return _BOTH
    return found
