"""Writes the instructions of a scene: short referring ones, questions and robot commands, with their targets."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from manifests.demo_scenes.layout import Scene, fits
from manifests.demo_scenes.references import Description, Speaker, gap, legible
from manifests.demo_scenes.things import KINDS

_PLURALS = {"box": "boxes", "knife": "knives"}


@dataclass(frozen=True)
class Ask:
    """One instruction: `kind` is referring, question or command; `targets` are indices of the scene's things.

    `meaning` is the description behind a referring instruction.
    """

    kind: str
    text: str
    targets: tuple[int, ...]
    meaning: Description | None = None


def write_instructions(scene: Scene, most: int = 4) -> list[Ask]:
    """Three or four instructions of all three kinds, no text twice; the same scene always gives the same ones.

    Where `most` is more, things that none of them asks for alone are referred to as well, until there are as many.
    """
    rng = np.random.default_rng((*scene.seed, 2))
    speaker = Speaker(scene, rng)
    wanted = ["referring", "question", "command"]
    if rng.random() < 0.75:
        wanted.append(str(rng.choice(wanted)))
    asks: list[Ask] = []
    for kind in wanted:
        ask = next((ask for ask in _WRITERS[kind](speaker) if ask.text not in {other.text for other in asks}), None)
        if ask:
            asks.append(ask)
    for ask in _referring(speaker):
        if len(asks) < most and ask.targets not in {other.targets for other in asks}:
            asks.append(ask)
    return asks


def _referring(speaker: Speaker) -> Iterator[Ask]:
    frames = ("{}", "{}", "{}", "find {}", "where is {}?", "point to {}", "show me {}", "segment {}")
    for target in speaker.askable():
        meaning = speaker.describe(target)
        text = speaker.words(meaning) if meaning else None
        if text:
            yield Ask("referring", speaker.one_of(frames).format(text), (target,), meaning)


def _questions(speaker: Speaker) -> Iterator[Ask]:
    yield from _in_random_order(speaker, "question", _QUESTIONS)


def _commands(speaker: Speaker) -> Iterator[Ask]:
    frames = ("{}", "{}", "{}", "Please {}", "Could you {}?", "Robot, {}", "{}, please", "I want you to {}")
    for ask in _in_random_order(speaker, "command", _COMMANDS):
        frame = speaker.one_of(frames)
        text = ask.text if frame.startswith("{}") and speaker.rng.random() < 0.5 else ask.text[0].lower() + ask.text[1:]
        yield Ask("command", frame.format(text), ask.targets)


_Sketch = tuple[str, tuple[int, ...]]
_WRITERS: dict[str, Callable[[Speaker], Iterator[Ask]]] = {
    "referring": _referring,
    "question": _questions,
    "command": _commands,
}


def _in_random_order(
    speaker: Speaker, kind: str, sketches: tuple[Callable[[Speaker], Iterator[_Sketch]], ...]
) -> Iterator[Ask]:
    for number in speaker.rng.permutation(len(sketches)):
        yield from (Ask(kind, text, targets) for text, targets in sketches[number](speaker))


def _group(speaker: Speaker, *, kind: str = "", group: str = "") -> tuple[int, ...]:
    """All things of a kind or of a category."""
    return tuple(
        index
        for index, thing in enumerate(speaker.scene.things)
        if kind == thing.kind or group in KINDS[thing.kind].groups
    )


def _plural(kind: str) -> str:
    return _PLURALS.get(kind, kind + "s")


def _ask_colour(speaker: Speaker) -> Iterator[_Sketch]:
    frames = ("What colour is {}?", "Can you tell me the colour of {}?", "Which colour does {} have?")
    for target in speaker.askable():
        thing = speaker.scene.things[target]
        if len(KINDS[thing.kind].colours) == 1 or thing.material == "wooden":
            continue
        if text := speaker.refer(target, without="colour"):
            yield speaker.one_of(frames).format(text), (target,)


def _ask_word(speaker: Speaker) -> Iterator[_Sketch]:
    frames = ("What does the label on {} say?", "Which word is printed on {}?", "Can you read what is written on {}?")
    titles = ("What is the title of {}?", "What is {} about, going by its title?")
    for target in speaker.askable():
        if legible(speaker.scene, target) and (text := speaker.refer(target, without="word")):
            is_book = speaker.scene.things[target].kind == "book"
            yield speaker.one_of(titles if is_book else frames).format(text), (target,)


def _ask_held(speaker: Speaker) -> Iterator[_Sketch]:
    frames = ("What is {} {}?", "What do you see {} {}?", "Is there something {} {}, and what is it?")
    for target in speaker.askable():
        support = speaker.scene.things[target].support
        if support is not None and (text := speaker.refer(support, simple=True)):
            yield speaker.one_of(frames).format(speaker.scene.things[support].holds, text), (target,)


def _ask_near(speaker: Speaker) -> Iterator[_Sketch]:
    groups = {"drink": "anything I could drink from", "fruit": "any fruit", "cutlery": "any cutlery", "toy": "a toy"}
    frames = ("Is there {} near {}?", "Can you see {} close to {}?", "Would I find {} right next to {}?")
    for group, words in groups.items():
        for landmark in speaker.askable():
            others = [index for index in _group(speaker, group=group) if index != landmark]
            near = tuple(index for index in others if gap(speaker.scene, index, landmark) < 25)
            doubtful = any(25 <= gap(speaker.scene, index, landmark) < 75 for index in others)
            text = speaker.refer(landmark, simple=True)
            held = any(speaker.scene.things[index].support is not None for index in (*near, landmark))
            if near and text and not doubtful and not held:
                yield speaker.one_of(frames).format(words, text), near


def _ask_group(speaker: Speaker) -> Iterator[_Sketch]:
    frames = {
        "fruit": (
            "Which fruit is on the table?",
            "How many pieces of fruit are there?",
            "What could I eat without cooking?",
        ),
        "cutlery": ("What cutlery has been laid out?", "Is there any cutlery in the picture?"),
        "toy": ("What could a small child play with here?", "Are there any toys on the table?"),
        "coffee": ("What would I pour my coffee into?", "I am making coffee. Which of these should I serve it in?"),
        "drink": ("Which of these things are meant for drinks?",),
    }
    for group in [list(frames)[number] for number in speaker.rng.permutation(len(frames))]:
        if targets := _group(speaker, group=group):
            yield speaker.one_of(frames[group]), targets


def _ask_purpose(speaker: Speaker) -> Iterator[_Sketch]:
    frames = {
        "knife": ("What could I use to slice a loaf of bread?", "What would I peel a potato with?"),
        "spoon": ("What would I eat soup with?", "What can I stir my tea with?"),
        "pan": ("Where could I fry an egg?", "Which object belongs on the stove for making pancakes?"),
        "book": ("I am bored. Is there anything to read?", "What would I pick up if I wanted to read?"),
        "teapot": ("What can I brew tea in for several guests?",),
        "box": ("Where could I pack my things away?",),
    }
    for kind in [list(frames)[number] for number in speaker.rng.permutation(len(frames))]:
        if targets := _group(speaker, kind=kind):
            yield speaker.one_of(frames[kind]), targets


def _ask_several(speaker: Speaker) -> Iterator[_Sketch]:
    for first in speaker.askable():
        kind = speaker.scene.things[first].kind
        targets = _group(speaker, kind=kind)
        frames = ["How many {} are there?", "How many {} can you count on the table?"]
        if len(targets) == 2:
            frames += ["Which of the two {} is bigger?", "How do the two {} differ?", "Are both {} the same size?"]
        if len(targets) > 1:
            yield speaker.one_of(tuple(frames)).format(_plural(kind)), targets


def _ask_pair(speaker: Speaker) -> Iterator[_Sketch]:
    frames = (
        "Is {} closer to the camera than {}?",
        "Which is further to the left, {} or {}?",
        "Is {} to the left or to the right of {}?",
        "Are {} and {} the same colour?",
    )
    yield from _pairs(speaker, speaker.one_of(frames), speaker.askable(), speaker.askable(), simple=True)


def _ask_pattern(speaker: Speaker) -> Iterator[_Sketch]:
    for pattern, words in (("striped", "stripes"), ("dotted", "dots")):
        targets = tuple(index for index, thing in enumerate(speaker.scene.things) if thing.pattern == pattern)
        if targets:
            yield (
                speaker.one_of(("Does anything here have {} on it?", "Which things are decorated with {}?")).format(
                    words
                ),
                targets,
            )


_QUESTIONS = (
    _ask_colour, _ask_word, _ask_word, _ask_held, _ask_near,
    _ask_group, _ask_purpose, _ask_several, _ask_pair, _ask_pattern,
)  # fmt: skip


def _pairs(
    speaker: Speaker, frame: str, firsts: list[int], seconds: list[int], simple: bool = False
) -> Iterator[_Sketch]:
    """The frame filled with a first and a second thing, wherever both can be referred to.

    The second is always referred to in a simple way, by itself; the first only if `simple`.
    """
    for first in firsts:
        for second in seconds:
            if first == second:
                continue
            one, other = speaker.refer(first, simple=simple), speaker.refer(second, simple=True)
            if one and other:
                yield frame.format(one, other), (first, second)


def _movable(speaker: Speaker) -> list[int]:
    things = speaker.scene.things
    return [
        index
        for index in speaker.askable()
        if KINDS[things[index].kind].graspable and all(other.support != index for other in things)
    ]


def _of_kind(speaker: Speaker, *kinds: str) -> list[int]:
    return [index for index in speaker.askable() if speaker.scene.things[index].kind in kinds]


def _put(speaker: Speaker) -> Iterator[_Sketch]:
    frames = {
        "on": ("Put {} on {}", "Place {} on {}", "Pick up {} and set it down on {}", "Move {} onto {}"),
        "in": ("Put {} in {}", "Place {} into {}", "Pick up {} and place it in {}", "Drop {} into {}"),
    }
    things = speaker.scene.things
    full = {thing.support for thing in things}
    for second in [index for index in speaker.askable() if index not in full]:
        firsts = [i for i in _movable(speaker) if fits(things[i], things[second])]
        if firsts:
            yield from _pairs(speaker, speaker.one_of(frames[things[second].holds]), firsts, [second])


def _move(speaker: Speaker) -> Iterator[_Sketch]:
    frames = (
        "Move {} next to {}",
        "Push {} closer to {}",
        "Slide {} away from {}",
        "Pick up {} and put it down behind {}",
        "Swap {} and {}",
        "Place {} to the left of {}",
    )
    on_table = [index for index in speaker.askable() if speaker.scene.things[index].support is None]
    movable = [index for index in _movable(speaker) if index in on_table]
    yield from _pairs(speaker, speaker.one_of(frames), movable, on_table, simple=True)


def _fetch(speaker: Speaker) -> Iterator[_Sketch]:
    frames = ("Hand me {}", "Pick up {}", "Bring me {}", "Grasp {} and lift it", "Take {} away")
    for target in _movable(speaker):
        if text := speaker.refer(target):
            yield speaker.one_of(frames).format(text), (target,)


def _unload(speaker: Speaker) -> Iterator[_Sketch]:
    for target in _movable(speaker):
        support = speaker.scene.things[target].support
        if support is not None:
            words = {"on": "off", "in": "out of"}[speaker.scene.things[support].holds]
            frame = speaker.one_of((f"Take {{}} {words} {{}}", f"Lift {{}} {words} {{}} and put it on the table"))
            yield from _pairs(speaker, frame, [target], [support], simple=True)


def _use(speaker: Speaker) -> Iterator[_Sketch]:
    fruit = [index for index in _group(speaker, group="fruit") if index in speaker.askable()]
    vessels = _of_kind(speaker, "cup", "mug", "bowl")
    yield from _pairs(speaker, "Cut {1} with {0}", _of_kind(speaker, "knife"), fruit)
    yield from _pairs(speaker, "Pour something from {} into {}", _of_kind(speaker, "bottle", "teapot", "can"), vessels)
    yield from _pairs(speaker, "Take {} and stir what is in {}", _of_kind(speaker, "spoon"), vessels)


def _collect(speaker: Speaker) -> Iterator[_Sketch]:
    for group, words in (("fruit", "fruit"), ("cutlery", "cutlery"), ("toy", "toys")):
        for host in _of_kind(speaker, "bowl", "box", "pan", "plate"):
            members = _group(speaker, group=group)
            text = speaker.refer(host, simple=True)
            if len(members) > 1 and text:
                frame = speaker.one_of(("Put all the {} {} {}", "Collect all the {} and put everything {} {}"))
                yield frame.format(words, speaker.scene.things[host].holds, text), (*members, host)


_COMMANDS = (_put, _put, _put, _move, _fetch, _unload, _use, _collect)
