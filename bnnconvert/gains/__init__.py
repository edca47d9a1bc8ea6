"""Gains: one method one file, one row each."""

from bnnconvert.errors import UsageError
from bnnconvert.gains.base import Gain, GainSite
from bnnconvert.gains.k_map import KMap
from bnnconvert.gains.squeeze_gate import SqueezeGate
from bnnconvert.gains.static_map import StaticMap
from bnnconvert.values.recipe import Named
from bnnconvert.values.tables import build_row

GAINS: dict[str, type[Gain]] = {
    "k-map": KMap,
    "static-map": StaticMap,
    "squeeze-gate": SqueezeGate,
}


def build_gain(named: Named, site: GainSite, *, where: str) -> Gain:
    """Gain of the layer at `site` that a rule's `gain` asks for.

    Raises: UsageError naming the key below `where`.
    """
    gain = build_row(GAINS, named, where=where, what="gain", site=site)
    if gain.stands_for == "inputs" and not site.has_binary_inputs:
        raise UsageError(
            f"{where}: gain {named.name!r} restores the size of a binary input, and this rule's input stays float; "
            "leave it out, or give the rule `inputs`."
        )
    return gain
