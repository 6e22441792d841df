"""Reads noun phrases off English text with closed classes of words: no part-of-speech tagger, time linear in length.

A `Lexicon` cuts text into sentences of tokens and says which classes each may be of; what is in no class is taken for
a noun. A `Chunker` gives each token one role by what stands around it, gathers runs around nouns, splits the objects
of a command, and trims what only led to a phrase or is asked about it.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, pairwise, takewhile
from typing import Any, NamedTuple

MAX_WORDS = 12
"""Words in a phrase; text encoders of grounding models lose the thread beyond that."""
MAX_PHRASES = 8
MAX_WORD_CHARS = 60
"""Longest single word: in scripts without spaces a whole sentence is one."""

UNKNOWN = "unknown"
COMMANDS = frozenset({"place", "take", "act", "find"})
ORDERS = COMMANDS - {"find"}
THING = frozenset({"noun", "quote"})
MODIFIER = frozenset({"adjective", "position"})
NOMINAL = THING | MODIFIER | {"adjective_or_noun", "participle", "abstract", "image", UNKNOWN}
IN_IMAGE = frozenset({"in", "of", "from", "within", "throughout", "inside"})
PREDICATE = frozenset({"relation", "negation", "participle"})
LOOSE = frozenset({"relation", "determiner", "conjunction", "auxiliary", "relative"})
"""Roles that hold a phrase together and say nothing at its ends."""
PRIORITY = (
    *("quote", "stop", "negation", "conjunction", "boundary", "support", "auxiliary", "pronoun", "determiner"),
    *("question", "relation", "image", "position", "abstract", "adjective", "participle"),
)
STARTERS = frozenset({"stop", "conjunction", "boundary", "pronoun", "support"})
"""Roles after which a command may stand."""

KEEP, DROP, BREAK = "keep", "drop", "break"

_BREAKS = r"\s,;:!?()\[\]{}\"“”«»「」…，、；：。？！"
_TOKEN = re.compile(
    rf"""(?P<quote>"[^"\n]{{1,80}}"|“[^”\n]{{1,80}}”|«[^»\n]{{1,80}}»|「[^」\n]{{1,80}}」|(?<![^\s(])'[^'\n]{{1,80}}'(?!\w))
    |(?P<end>[.!?]+(?=\s|$)|[。？！]|\n)
    |(?P<word>[^.{_BREAKS}]+(?:[.,:][^.{_BREAKS}]+)*)
    |(?P<stop>\S)""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A word, or several that are one entry of the lexicon, and its role: the one class it is of here."""

    text: str
    role: str


END = Token("", "stop")


class Sentence(NamedTuple):
    """Tokens with the classes each may be of; `question` if it ends or begins like one."""

    tokens: list[tuple[str, frozenset[str]]]
    question: bool


def entries(text: str) -> list[str]:
    """Items of a comma-separated string, as the rule files write word lists."""
    return [entry.strip() for entry in text.split(",")]


class Lexicon:
    """Closed classes of words, given as {class: "entry, entry, …"} in lower case."""

    def __init__(self, classes: dict[str, str]) -> None:
        self._classes: dict[str, frozenset[str]] = {}
        self._longest: dict[str, int] = {}
        for name, listed in classes.items():
            for entry in entries(listed):
                self._classes[entry] = self._classes.get(entry, frozenset()) | {name}
                first, *rest = entry.split()
                self._longest[first] = max(self._longest.get(first, 1), 1 + len(rest))

    def sentences(self, text: str) -> Iterator[Sentence]:
        """Sentences of a text in order, fillers left out."""
        words: list[tuple[str, str]] = []
        for match in _TOKEN.finditer(text):
            kind = str(match.lastgroup)
            if kind == "word" and not re.search(r"\w", match[0]):
                kind = "stop"
            if kind == "end":
                yield self._sentence(words, match[0][-1] in "?？")
                words = []
            elif kind != "stop" or (words and words[-1][1] != "stop"):
                words.append((match[0], kind))
        yield self._sentence(words, False)

    def _sentence(self, words: list[tuple[str, str]], question: bool) -> Sentence:
        if words and words[0][1] == "word" and words[0][0].istitle() and words[0][0].isascii():
            words[0] = (words[0][0].lower(), "word")
        tokens = list(self._tokens(words))
        opening = tokens[0][1] if tokens else frozenset()
        return Sentence(tokens, question or bool(opening & {"question", "auxiliary", "support"}))

    def _tokens(self, words: list[tuple[str, str]]) -> Iterator[tuple[str, frozenset[str]]]:
        lower = [text.lower().replace("’", "'") if kind == "word" else "" for text, kind in words]
        at = 0
        while at < len(words):
            text, kind = words[at]
            length = self._longest.get(lower[at], 1)
            while length > 1 and " ".join(lower[at : at + length]) not in self._classes:
                length -= 1
            classes = self._classes.get(" ".join(lower[at : at + length]), frozenset({UNKNOWN}))
            if kind != "word":
                yield text, frozenset({kind})
            elif "filler" not in classes:
                yield " ".join(text for text, _ in words[at : at + length]), classes
            at += length


class Chunker:
    """Reads noun phrases off sentences by `classes`, `splits` and `holders` of the rule file."""

    def __init__(self, rules: dict[str, Any]) -> None:
        self._sources = set(entries(rules["splits"]["source"]))
        self._goals = [set(entries(tier)) for tier in rules["splits"]["goals"]]
        self._tools = set(entries(rules["splits"]["tool"]))
        self._holders = set(entries(rules["holders"]))

    def phrases(self, sentences: Iterable[Sentence]) -> list[str]:
        """Phrases in order, no two alike; those of attributes alone ("far left") only if there are no others."""
        named: list[str] = []
        bare: list[str] = []
        for sentence in sentences:
            tokens = roles(sentence)
            question = sentence.question or any(token.role == "question" for token in tokens)
            ordered = any(token.role in ORDERS for token in tokens)
            for run, command in self._runs(tokens):
                for part in self._split(run, command):
                    _trim(part, question)
                    phrase = _text(part)
                    if phrase and _any(part, THING if question else THING | {"participle"}):
                        named.append(phrase)
                    elif phrase and not (question or ordered) and not _any(part, NOMINAL - MODIFIER):
                        bare.append(phrase)
        return list({phrase.casefold(): phrase for phrase in named or bare}.values())[:MAX_PHRASES]

    def _runs(self, tokens: list[Token]) -> Iterator[tuple[list[Token], str]]:
        """Runs of tokens around nouns, each with the kind of command it stands under ("" if none)."""
        run: list[Token] = []
        command = ""
        for at, token in enumerate(tokens):
            after = tokens[at + 1 : at + MAX_WORDS] or [END]
            step = self._step(run, token, after, command)
            if token.role == "image" and after[0].role not in THING and (outside := _outside_image(run)):
                run = outside
            elif step == KEEP:
                run.append(token)
            if run and (step == BREAK or len(run) >= 4 * MAX_WORDS):
                yield run, command
                run = []
            if token.role in COMMANDS:
                command = token.role
        if run:
            yield run, command

    def _step(self, run: list[Token], token: Token, after: list[Token], command: str) -> str:
        """Whether a token goes on with the run, is left out of it, or ends it."""
        last = run[-1].role if run else ""
        following = after[0].role
        match token.role:
            case role if role in NOMINAL:
                return KEEP
            case "determiner" if not run:
                return DROP
            case "determiner":
                return KEEP if last in {"relation", "conjunction", "negation", "verb", "participle"} else BREAK
            case "relation" if token.text.lower() == "to" and following in COMMANDS:
                return BREAK
            case "relation":
                return KEEP if run else DROP
            case "negation":
                return KEEP if following in NOMINAL | {"determiner", "relation"} else DROP
            case "auxiliary" | "verb" if last == "relative":
                return KEEP
            case "auxiliary":
                return DROP if _any(run, THING) and after[0].role in PREDICATE else BREAK
            case "relative" if following == "auxiliary" and after[1:2] and after[1].role in PREDICATE:
                return DROP
            case "relative":
                return KEEP if following in {"auxiliary", "verb"} else BREAK
            case "conjunction":
                return KEEP if run and self._and_belongs(run, after[0], command) else BREAK
            case "stop":
                return DROP if run and token.text == "," and self._comma_belongs(run, after, command) else BREAK
            case _:
                return BREAK

    def _and_belongs(self, run: list[Token], after: Token, command: str) -> bool:
        """Whether "and" joins two attributes, the two ends of "between", or what one thing has."""
        if run[-1].role == "adjective" and after.role == "adjective":
            return True
        if after.role == "relation" and command not in ORDERS:
            return _any(run, THING)
        words = [token.text.lower() for token in run]
        if "between" in words:
            joined = any(token.role == "conjunction" for token in run)
            return not joined and _any(run[: words.index("between")], THING)
        if command in ORDERS or after.text.lower() == "the" or after.role not in NOMINAL | {"determiner"}:
            return False
        dressed = any(
            word == "in" and any(token.role == "adjective" for token in run[at + 1 : at + 3])
            for at, word in enumerate(words)
        )
        return dressed or not self._holders.isdisjoint(words)

    def _comma_belongs(self, run: list[Token], after: list[Token], command: str) -> bool:
        """Whether what follows a comma still describes the same thing."""
        if not _any(run, THING):
            return after[0].role in NOMINAL
        if command in ORDERS:
            return after[0].role == "negation"
        rest = list(takewhile(lambda token: token.role != "stop", after))
        return after[0].role in PREDICATE or (_any(rest, MODIFIER) and not _any(rest, THING | {"conjunction"}))

    def _split(self, run: list[Token], command: str) -> Iterator[list[Token]]:
        """The objects of a command, each for itself: what is moved, from where, to where, and with what tool."""
        words = [token.text.lower() if token.role == "relation" else "" for token in run]
        apart = self._sources | self._tools if command == "act" else self._sources
        cuts = {at for at, word in enumerate(words) if word in apart}
        for tier in self._goals if command == "place" else self._goals[:1]:
            if goals := [at for at, word in enumerate(words) if word in tier]:
                cuts.add(goals[0])
                break
        cuts = cuts - {0} if command in ORDERS else set()
        for start, end in pairwise([0, *sorted(cuts), len(run)]):
            yield run[start:end]


def roles(sentence: Sentence) -> list[Token]:
    """Tokens with one role each, by what stands around them."""
    tokens: list[Token] = []
    starts, support, subject = True, False, False
    for (text, classes), (_, after) in pairwise([*sentence.tokens, ("", frozenset({"stop"}))]):
        previous = tokens[-1].role if tokens else ""
        infinitive = bool(tokens) and tokens[-1].text.lower() == "to"
        role = _command(classes, after, sentence.question and not infinitive) if starts or infinitive else ""
        if not role and _is_verb(classes, previous, support and subject):
            role = "verb"
        role = role or _role(classes, after, previous, sentence.question)
        if role == UNKNOWN:
            role = "participle" if len(text) > 4 and text.lower().endswith(("ing", "ed")) else "noun"
        tokens.append(Token(text, role))
        subject = role != "support" and (subject or role in THING)
        support = support or role == "support"
        starts = role in STARTERS or (starts and role == "negation")
    return tokens


def all_known(sentences: Iterable[Sentence]) -> bool:
    """Whether the text has words, and each is of a class that names no thing."""
    words = [classes - {"stop"} for sentence in sentences for _, classes in sentence.tokens]
    words = [classes for classes in words if classes]
    return words != [] and not any(classes <= THING | {UNKNOWN, "participle"} for classes in words)


def _command(classes: frozenset[str], after: frozenset[str], question: bool) -> str:
    """The kind of command a word gives where a clause starts, or "" if it gives none."""
    command = min(classes & COMMANDS, default="")
    if "relative" not in after and after & {"determiner", "pronoun", "question"}:
        return command or ("act" if classes == {UNKNOWN} and "question" not in after and not question else "")
    if classes & (NOMINAL - THING):
        return ""
    objects = NOMINAL - {"position"} if "noun" in classes else NOMINAL | {"relation"}
    return command if after & objects else ""


def _is_verb(classes: frozenset[str], previous: str, asked: bool) -> bool:
    """Whether a word is the verb of its clause; `asked` after "does the man", "can you" and the like."""
    if previous in {"determiner", "adjective"}:
        return False
    return "verb" in classes or bool((asked or previous == "pronoun") and classes & (COMMANDS | {"plain_verb"}))


def _role(classes: frozenset[str], after: frozenset[str], previous: str, question: bool) -> str:
    """The role of a word that is no verb here."""
    if "relative" in classes and previous in NOMINAL:
        return "relative"
    if "adjective_or_noun" in classes:
        return "adjective" if previous == "noun" else "noun"
    if "abstract" in classes and previous == "question":
        return "question"
    if "viewer" in classes and previous == "relation":
        return "position"
    if "relation" in classes and classes & NOMINAL and "determiner" not in after:
        classes -= {"relation"}
    if "support" in classes and "noun" in classes:  # "can"
        named = previous == "determiner" or (previous in NOMINAL and not after & (NOMINAL | {"auxiliary", "pronoun"}))
        return "noun" if named else "support"
    headless = previous == "determiner" and not question and not after & (NOMINAL | {"conjunction"})
    if classes & {"adjective", UNKNOWN} and headless:
        return "noun"
    return next((role for role in PRIORITY if role in classes), UNKNOWN if UNKNOWN in classes else "noun")


def _trim(part: list[Token], question: bool) -> None:
    while part and _only_leads(part):
        del part[0]
    while part and _only_trails(part, question):
        del part[-1]


def _only_leads(part: Sequence[Token]) -> bool:
    """Whether the first token only leads to the thing: "color of …", "parked next to …"."""
    first, second = (*part, END)[:2]
    about = list(dropwhile(lambda token: token.role == "adjective", part))
    if len(about) > 1 and about[0].role in {"abstract", "image"}:
        return about[1].role == "relative" or about[1].text.lower() in {"of", "about", "between", "for"}
    if first.role == "participle":
        return second.role not in NOMINAL and _any(part[1:], THING)
    return first.role in LOOSE | {"verb"}


def _only_trails(part: Sequence[Token], question: bool) -> bool:
    """Whether the last token leads nowhere or, in a question, is what is asked: "is the car red"."""
    last = part[-1]
    if last.role in LOOSE | {"negation", "verb"}:
        return True
    if not question or len(part) == 1:
        return False
    if last.role == "participle":
        return part[-2].role != "negation"
    run = len(part)
    while run and part[run - 1].role in {"adjective", "conjunction", "abstract"}:
        run -= 1
    return 0 < run < len(part) and part[run - 1].role in THING | {"position"} and not part[run - 1].text.endswith("'s")


def _any(tokens: Iterable[Token], kinds: frozenset[str]) -> bool:
    return any(token.role in kinds for token in tokens)


def _outside_image(run: list[Token]) -> list[Token]:
    """A run without the "in the" before "image", of "on the left of the" only "on the left"; else empty."""
    run = list(run)
    while run and run[-1].role == "determiner":
        del run[-1]
    if not _any(run, THING) or run[-1].role != "relation":
        return []
    relation = run.pop().text
    if relation.lower().endswith(" of") and relation.count(" ") > 1:
        return [*run, Token(relation[:-3], "position")]
    return run if relation.lower() in IN_IMAGE else []


def _text(part: list[Token]) -> str:
    """A phrase of at most 12 words, cut where a relation begins; "" if there is no place to cut."""
    part = part[: MAX_WORDS + 1]
    while len(text := " ".join(token.text for token in part).split()) > MAX_WORDS:
        cut = max((at for at, token in enumerate(part) if token.role == "relation"), default=0)
        part = part[:cut]
    return "" if any(len(word) > MAX_WORD_CHARS for word in text) else " ".join(text)
