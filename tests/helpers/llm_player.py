"""What a stand-in for a language model answers to the project's prompts, by the rules of `stages`."""

from functools import cache
from typing import Any

from pipeline.errors import BadInstruction
from prompts.loader import load_prompt
from stages.complicate import RuleComplicator
from stages.simplify import RuleSimplifier, Simplified


def played(body: dict[str, Any], data: dict[str, Any], system: str) -> dict[str, Any]:
    """The answer to a request's `body`: of the form its schema asks for, or the one that its `system` text names;
    `data` is the JSON object with the `instruction`."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    wanted = set(schema.get("properties", {})) or {
        name for name in ("whole_image", "destinations", "reasoning") if name in system
    }
    instruction = str(data.get("instruction") or ", ".join(map(str, data.get("descriptions", []))))
    found = _simplified(instruction)
    if "whole_image" in wanted:
        return {"whole_image": not found.phrases, "phrases": found.phrases}
    if "destinations" in wanted:
        things = found.phrases or [" ".join(instruction.split()[:8])]
        return {"objects": things[:1], "destinations": things[1:], "tools": []}
    if "reasoning" in wanted:
        return dict(zip(("reasoning", "question", "command"), _complicated(instruction, found), strict=True))
    return {"answer": instruction}


@cache
def _rules() -> tuple[RuleSimplifier, RuleComplicator]:
    return RuleSimplifier(load_prompt("simplify_rules")), RuleComplicator(load_prompt("complicate_rules"))


def _simplified(instruction: str) -> Simplified:
    try:
        return _rules()[0](instruction)
    except BadInstruction:
        return Simplified("", [])


def _complicated(instruction: str, found: Simplified) -> list[str]:
    everything = Simplified("everything", ["everything in the picture"])
    return _rules()[1](instruction, found if found.phrases else everything)
