"""Facts and checks that a diagnosis consists of. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from t5_pipeline.core.errors import InputError

State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Check:
    """One check: its state, the finding, and what to do about it.

    Attributes:
        state: "ok"; "note": usable, but worth knowing; "wrong": the stages refuse it, or results would be wrong.
        fix: empty if there is nothing to do.
    """

    name: str
    state: State
    found: str
    fix: str = ""


@dataclass
class Diagnosis:
    """The facts found about an artifact, its use by the stages, and the checks.

    Attributes:
        what: kind of artifact: "T5", "soft prompt", …
        location: the place that was given.
        facts: name → (value for JSON, text for people).
        uses: stage → what it would do with the artifact.
    """

    what: str
    location: str
    facts: dict[str, tuple[Any, str]] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no check is wrong."""
        return all(check.state != "wrong" for check in self.checks)

    def fact(self, name: str, value: Any, text: str = "") -> None:
        self.facts[name] = (value, text or str(value))

    def passed(self, name: str, found: str) -> None:
        self.checks.append(Check(name, "ok", found))

    def note(self, name: str, found: str, fix: str = "") -> None:
        self.checks.append(Check(name, "note", found, fix))

    def wrong(self, name: str, found: str, fix: str) -> None:
        self.checks.append(Check(name, "wrong", found, fix))

    def refused(self, name: str, error: InputError) -> None:
        """Add an error of the pipeline as a check: `WHERE: what is wrong; what to do`."""
        found, _, fix = str(error).rpartition("; ")
        self.wrong(name, found or fix, fix if found else "fix this and run doctor again")

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turn an InputError of the block into a check that is wrong."""
        try:
            yield
        except InputError as error:
            self.refused(name, error)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "location": self.location,
            "ok": self.ok,
            "facts": {name: value for name, (value, _) in self.facts.items()},
            "uses": self.uses,
            "checks": [asdict(check) for check in self.checks],
        }
