"""How a user steers tracing: modules to leave whole, and values of arguments."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Steering(BaseModel):
    """What tracing takes from the user; by default nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    leaves: tuple[str, ...] = ()
    """Paths of modules that are called as they are."""
    concrete: dict[str, Any] = {}
    """Arguments of the model's forward that have a value, by name; those that are not given have their default."""
