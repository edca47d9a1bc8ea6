"""Match layers against a recipe's rules."""

import re
from fnmatch import fnmatchcase

from bnnconvert.values.plan import LayerFacts
from bnnconvert.values.recipe import Match


def matches(match: Match, facts: LayerFacts) -> bool:
    """Whether every given key of `match` holds for the layer."""
    position = {"first": facts.is_first, "last": facts.is_last, "inner": not (facts.is_first or facts.is_last)}
    return (
        (match.kind is None or facts.kind in match.kind)
        and (match.position is None or position[match.position])
        and (match.depthwise is None or match.depthwise == facts.is_depthwise)
        and (match.shortcut is None or match.shortcut == facts.is_shortcut)
        and (match.path is None or any(_path_matches(pattern, facts.path) for pattern in match.path))
    )


def _path_matches(pattern: str, path: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern.removeprefix("re:"), path) is not None
    return fnmatchcase(path, pattern)
