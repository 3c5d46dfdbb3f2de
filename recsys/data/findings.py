"""What an audit found, as a split keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of an audit: ``level`` is "ok", "note" (worth knowing) or "leak" (numbers would mean nothing)."""

    name: str
    level: str
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """The findings about one split; printing it gives one line each."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        """The findings that make every number from this split meaningless."""
        return tuple(finding for finding in self.findings if finding.level == "leak")

    def __getitem__(self, name: str) -> Finding:
        """The finding called ``name``."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"no finding {name!r}; there are {', '.join(finding.name for finding in self.findings)}")

    def __str__(self) -> str:
        signs = {"ok": " ", "note": "!", "leak": "X"}
        lines = [f"  {signs[finding.level]} {finding.text}" for finding in self.findings]
        return "\n".join([f"audit of {self.title}", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON."""
        return {"title": self.title, "findings": [asdict(finding) for finding in self.findings]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Audit:
        """The audit that :meth:`to_dict` wrote."""
        return cls(values["title"], tuple(Finding(**finding) for finding in values["findings"]))
