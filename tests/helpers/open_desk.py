"""A desk without limits or store, for tests of what asks through one."""

from dataclasses import dataclass, field

from stages.llm import Admission, Answer, Claim, Question


@dataclass
class OpenDesk:
    """Lets every question be asked at once and keeps nothing, but what it was told: `settled` holds key, answer and
    requests of each claim that ended, `failures` whether the endpoint looked down, for each failure."""

    settled: list[tuple[str, Answer | None, int]] = field(default_factory=list)
    failures: list[bool] = field(default_factory=list)

    async def claim(self, key: str, anew: bool = False) -> Claim:
        return Claim(None)

    async def admit(self, key: str, size: int) -> Admission:
        return Admission(True)

    async def failed(self, key: str, down: bool) -> bool:
        self.failures.append(down)
        return True

    async def settle(self, question: Question, answer: Answer | None, requests: int) -> None:
        self.settled.append((question.key, answer, requests))
